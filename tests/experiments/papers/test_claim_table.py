# SPDX-License-Identifier: Apache-2.0
"""The judges of claims, on evidence made by hand."""

import math

import pytest

from experiments.papers import claim_table
from experiments.papers import evidence as ev
from experiments.papers.tables import TABLES

CLAIMS = claim_table.CLAIMS
# Test errors of networks that have learned the digits, of others, and of some that did.
LEARNS, GUESSES, SOME = (1.0, 2.0, 3.0), (89.0, 90.0, 91.0), (1.0, 89.0, 90.0)


def deletions(*errors, transitions=(90.0,), base=1.0):
    blocks = [{"error_percent": e, "transition": False} for e in (*errors, None)]
    blocks += [{"error_percent": e, "transition": True} for e in transitions]
    found = {"blocks": blocks, "baseline_error_percent": base, "num_classes": 10}
    return {"delete_one": found}


def many(*medians, base=1.0):
    errors = [[m - 5, m, m + 5] for m in medians]
    deleted = list(range(1, len(medians) + 1))
    result = {"deleted": deleted, "error_percent": errors, "num_classes": 10}
    return {"delete_many": {**result, "baseline_error_percent": base}}


def orders(*errors, base=1.0):
    found = [
        {"kendall_tau": 1 - i / 9, "error_percent": e} for i, e in enumerate(errors)
    ]
    result = {"orders": found, "baseline_error_percent": base, "num_classes": 10}
    return {"permute": result}


def gradients(factor, peak=None, bend=0.0):
    """Gradients that shrink by a factor, and contributions of one length."""
    weights = [float(length == peak) for length in range(55)]
    means = [factor ** -(k - bend * k * (54 - k)) for k in range(55)]
    result = {"relative_mean": means, "contribution": {"weights": weights}}
    return {"path_gradients": result}


def first_gradients(*values):
    return {"gradient_magnitude": {"first_gradient": list(values)}}


def damage(rho, p_value=0.01):
    found = None if rho is None else {"rho": rho, "p_value": p_value}
    return {"survival_damage": {"spearman_without_transitions": found}}


def drawn(single, rule):
    """The error of the test rule, and of two networks drawn as in training."""
    found = {"error_percent": [[single - 1, single + 1], [rule]], "sizes": [1, 2]}
    return {"gate_ensemble": {**found, "test_rule_error_percent": rule}}


def skip(median, low, high):
    found = {"median": median, "quartile_1": low, "quartile_3": high}
    ratios = {"drawn p_L=0.5": found, "drawn p_L=0.2": found}
    return {"rounds": 7, "ratio_to_constant": ratios}


def runs(**errors):
    """Runs by row: a test error, and a training loss a hundred times smaller."""
    return {
        row: [{"test_error_percent": e, "train_loss": e / 100} for e in each]
        for row, each in errors.items()
    }


def start(first):
    outputs = {"stem": first, "last": 1.0}
    return {"start": {"outputs": outputs, "weights": {}}}


def through_shortcuts(*norms):
    """Of four blocks, the second and third of which keep the shape; and trained."""
    names = [f"stage1/block0{i}" for i in "1234"]
    same = [False, True, True, False]
    return {"block_names": names, "same_shape": same, "shortcuts": list(norms)}


def through_trained(*norms):
    return {"shortcut_gradient": through_shortcuts(*norms)}


def branches(kernel=1.0, scale=1.0, response=1.0, deviation=1.0):
    found = {"kernel": [kernel], "scale": [scale, None], "response": [None, response]}
    responses = {"standard_deviation": [deviation]}
    return {"branch_weights": found, "layer_responses": responses}


def sizes(**numbers):
    return {name: size(number) for name, number in numbers.items()}


def whole(identity, projection):
    return {"resnet50 B": size(identity), "resnet50 C": size(projection)}


def deepened(change):
    return {"deepen": {"deeper": [{"largest_change_of_probability": change}]}}


def trained_on(*losses, still=1.0):
    found = {"train_loss": list(losses), "train_loss_at_rate_0": still}
    return {"deepen": {"trained_on": {"images": 1437, "steps": 22, **found}}}


def combined(apart, summed):
    found = {"concatenated_ratio": [apart, apart], "variance_ratio": [summed, summed]}
    return {"combined_features": found}


def reuse(sources):
    """Two equal blocks, whose last layer weighs its sources so; then a transition."""
    a, b, c = sources
    block = [[1.0, a, a, 1.0], [None, b, b, 1.0], [None, None, c, 1.0]]
    block += [[None, None, None, 1.0]]
    return {"feature_reuse": {"blocks": [block, block]}}


def options(**numbers):
    return {f"resnet34 {kind}": size(number) for kind, number in numbers.items()}


def size(number):
    return {"params": number, "multiply_adds": number}


def full(errors):
    return runs(preact_resnet110=errors)


def original(errors):
    return runs(resnet110_he2015=errors)


def bounded(*, clipped, adamw, residual=LEARNS):
    rows = {"plain_clipped": clipped, "plain_adamw": adamw}
    return runs(**rows, residual_clipped=residual, residual_adamw=residual)


# Ten and nine, or one and no deletions that cost a point or less.
ROBUST = [deletions(*[1.0] * 10), deletions(*[1.0] * 9, 50.0)]
FRAGILE = [deletions(1.0, *[50.0] * 9), deletions(*[50.0] * 10)]
LOW, HIGH, WIDE = (1.0, 1.1, 0.9), (9.0, 9.1, 8.9), (0.5, 9.0, 4.0)
EVEN = [1.5 + 4 * k for k in range(8)]
STEP = [1.5, 5.5, 9.5, 30.0, 34.0, 38.0, 42.0, 46.0]
JUMP = [1.0, 2.0, 60.0, 61.0, 62.0, 63.0, 64.0, 65.0]


def losses(plain, residual, resnet20=LOW):
    """The training losses of 20 layers, and of 56 layers, plain and with shortcuts."""
    return runs(plain20=LOW, plain56=plain, resnet20=resnet20, resnet56=residual)


CASES = {
    "shortcuts_short": [
        ([losses(HIGH[::-1], LOW[::-1])], ev.HOLDS),
        ([losses(LOW[::-1], HIGH[::-1])], ev.FAILS),
        ([losses(HIGH[::-1], (19.0, 20.0, 21.0), (18.9, 20.0, 21.1))], ev.HOLDS),
        ([losses(WIDE, WIDE[::-1])], ev.UNDECIDED),
    ],
    "vanishing_gradient": [
        ([[start(1e-3)] * 2], ev.HOLDS),
        ([[start(0.5)] * 2], ev.UNDECIDED),
        ([[start(0.0)] * 2], ev.HOLDS),
        ([[start(1e3)] * 2], ev.FAILS),
    ],
    "shortcuts_keep_the_gradient": [
        ([[start(n) for n in HIGH], [start(1e6 * n) for n in HIGH]], ev.HOLDS),
        ([[start(n) for n in HIGH], [start(1e-6 * n) for n in HIGH]], ev.HOLDS),
        ([[start(1e-6 * n) for n in HIGH], [start(n) for n in HIGH]], ev.FAILS),
    ],
    "normalisation": [
        ([[start(5.0)] * 2, [start(1e-9)] * 2], ev.HOLDS),
        ([[start(5.0)] * 2, [start(5.0)] * 2], ev.UNDECIDED),
        ([[start(50.0)] * 2, [start(1e-9)] * 2], ev.UNDECIDED),  # it explodes
        ([[start(1e-3)] * 2, [start(1e-9)] * 2], ev.FAILS),
        ([[start(1e12)] * 2, [start(1e-9)] * 2], ev.FAILS),
    ],
    "exploding_gradient": [
        ([runs(plain110=GUESSES), bounded(clipped=LEARNS, adamw=LEARNS)], ev.HOLDS),
        ([runs(plain110=GUESSES), bounded(clipped=GUESSES, adamw=GUESSES)], ev.FAILS),
        ([runs(plain110=LEARNS), bounded(clipped=LEARNS, adamw=LEARNS)], ev.FAILS),
        ([runs(plain110=SOME), bounded(clipped=LEARNS, adamw=LEARNS)], ev.UNDECIDED),
        (
            [runs(plain110=GUESSES), bounded(clipped=LEARNS, adamw=GUESSES)],
            ev.UNDECIDED,
        ),
        (
            [runs(plain110=GUESSES), bounded(clipped=SOME, adamw=LEARNS)],
            ev.UNDECIDED,
        ),
        (
            [
                runs(plain110=GUESSES),
                bounded(clipped=GUESSES, adamw=GUESSES, residual=SOME),
            ],
            ev.UNDECIDED,
        ),
    ],
    "small_responses": [
        ([[branches(response=0.4, scale=0.5)] * 2], ev.HOLDS),
        ([[branches(response=0.6, scale=0.5)] * 2], ev.UNDECIDED),
        ([[branches(response=1.1, scale=0.5)] * 2], ev.FAILS),
        # BatchNorm's scales are as at the start.
        ([[branches(response=0.4, scale=1.05)] * 2], ev.UNDECIDED),
    ],
    "responses_below_plain": [
        (
            [
                [branches(deviation=d, scale=0.5) for d in LOW],
                [branches(deviation=d, scale=0.5) for d in HIGH],
            ],
            ev.HOLDS,
        ),
        (
            [
                [branches(deviation=d, scale=0.5) for d in LOW],
                [branches(deviation=d, scale=1.0) for d in HIGH],
            ],
            ev.UNDECIDED,
        ),
    ],
    "responses_by_depth": [
        (
            [
                [branches(deviation=d, scale=0.5) for d in HIGH],
                [branches(deviation=d, scale=0.5) for d in LOW],
            ],
            ev.FAILS,
        ),
    ],
    "weights_towards_zero": [
        ([[branches(scale=0.4)] * 2, [branches()] * 2], ev.HOLDS),
        ([[branches(scale=0.4)] * 2, [branches(scale=0.3)] * 2], ev.UNDECIDED),
        # BatchNorm undoes the kernels' norm.
        ([[branches(kernel=0.4)] * 2, [branches()] * 2], ev.UNDECIDED),
        ([[branches(scale=0.6)] * 2, [branches()] * 2], ev.UNDECIDED),
        ([[branches(scale=1.2)] * 2, [branches()] * 2], ev.FAILS),
    ],
    "identities_pass_the_gradient": [
        ([[through_shortcuts(1.0, 2.0, 2.0, 2.0)] * 2], ev.HOLDS),
        ([[through_shortcuts(2.0, 1.9, 2.0, 2.0)] * 2], ev.UNDECIDED),
        ([[through_shortcuts(2.0, 1.5, 2.0, 2.0)] * 2], ev.FAILS),
        ([[through_shortcuts(0.0, 0.0, 0.0, 0.0)] * 2], ev.FAILS),
    ],
    "relu_cuts_the_gradient": [
        ([[through_shortcuts(1.0, 0.9, 1.5, 2.0)] * 2], ev.HOLDS),
        ([[through_shortcuts(1.0, 1.1, 1.5, 2.0)] * 2], ev.UNDECIDED),
        ([[through_shortcuts(1.0, 2.0, 2.0, 2.0)] * 2], ev.FAILS),
    ],
    "relu_cuts_less_after_training": [
        (
            [
                [through_shortcuts(1.0, n, 5.0, 10.0) for n in LOW],
                [through_trained(1.0, n, 9.5, 10.0) for n in HIGH],
            ],
            ev.HOLDS,
        ),
        (
            [
                [through_shortcuts(1.0, n, 9.5, 10.0) for n in HIGH],
                [through_trained(1.0, n, 5.0, 10.0) for n in LOW],
            ],
            ev.FAILS,
        ),
    ],
    "scaling_cuts_the_gradient": [
        ([[through_shortcuts(1.0, 0.5, 1.0, 2.0)] * 2], ev.HOLDS),
        ([[through_shortcuts(0.0, 0.0, 0.5, 2.0)] * 2], ev.HOLDS),
        ([[through_shortcuts(1.0, 0.6, 1.0, 1.5)] * 2], ev.UNDECIDED),
        ([[through_shortcuts(1.0, 2.0, 2.0, 2.0)] * 2], ev.FAILS),
    ],
    "parameter_free": [
        ([sizes(plain110=9, resnet110=9)], ev.HOLDS),
        ([sizes(plain110=9, resnet110=10)], ev.FAILS),
    ],
    "projections": [
        ([options(A=100, B=101, C=105)], ev.HOLDS),
        ([options(A=100, B=101, C=107)], ev.FAILS),
        ([options(A=101, B=100, C=105)], ev.FAILS),
    ],
    "complexity_34": [
        ([sizes(plain34=18, vgg19=100)], ev.HOLDS),
        ([sizes(plain34=20, vgg19=100)], ev.FAILS),
    ],
    "complexity_152": [
        ([sizes(resnet152=11, vgg16=15)], ev.HOLDS),
        ([sizes(resnet152=16, vgg16=15)], ev.FAILS),
    ],
    "same_complexity": [
        ([sizes(resnext50_32x4d=42, resnet50=41)], ev.HOLDS),
        ([sizes(resnext50_32x4d=51, resnet50=41)], ev.FAILS),
    ],
    "dense_parameters": [
        ([sizes(densenet_bc100_12=8, preact_resnet1001=102)], ev.HOLDS),
        ([sizes(densenet_bc100_12=11, preact_resnet1001=102)], ev.FAILS),
    ],
    "googlenet_parameters": [
        ([sizes(googlenet_2014=5, alexnet_2012=60)], ev.HOLDS),
        ([sizes(googlenet_2014=7, alexnet_2012=61)], ev.FAILS),
    ],
    "deeper_when_trained": [
        ([[deepened(1e-6)] * 2], ev.HOLDS),
        ([[deepened(1e-3)] * 2], ev.UNDECIDED),
        ([[deepened(0.1)] * 2], ev.FAILS),
    ],
    "deeper_trains_on": [
        ([[trained_on(0.5, 0.25)] * 2], ev.HOLDS),
        ([[trained_on(0.25, 0.5)] * 2], ev.FAILS),
        ([[trained_on(0.5, 0.25, still=0.2)] * 2], ev.FAILS),
        ([[trained_on(0.5, 0.25), trained_on(0.25, 0.5)]], ev.UNDECIDED),
    ],
    "concatenation_varies_more": [
        ([[combined(apart=2.0, summed=1.0)] * 2], ev.HOLDS),
        ([[combined(apart=1.0, summed=2.0)] * 2], ev.FAILS),
    ],
    "feature_reuse": [
        ([[reuse([1.0, 0.5, 0.3])] * 2], ev.HOLDS),
        ([[reuse([1.0, 1.0, 1.0])] * 2], ev.UNDECIDED),  # as random weights are
        ([[reuse([1.0, 1e-9, 1e-9])] * 2], ev.FAILS),  # each layer reads one source
    ],
    "transitions_least_used": [
        ([[reuse([0.5, 1.0, 1.0])] * 2], ev.HOLDS),
        ([[reuse([1.5, 1.0, 1.0])] * 2], ev.FAILS),
        ([[reuse([0.998, 1.0, 1.0])] * 2], ev.UNDECIDED),  # as at the start
        ([[reuse([0.5, 1.0, 1.0]), reuse([1.5, 1.0, 1.0])]], ev.UNDECIDED),
    ],
    # One run decides nothing, whatever its error.
    "error_20": [
        ([{"test_error_percent": error}], ev.UNDECIDED) for error in (8.75, 20.0)
    ],
    "identity_is_best": [
        ([original(LOW), runs(one=HIGH, other=HIGH)], ev.HOLDS),
        ([original(LOW), runs(one=HIGH, other=LOW)], ev.UNDECIDED),
        ([original(HIGH), runs(one=HIGH, other=LOW)], ev.FAILS),
    ],
    "activation_orders": [
        ([full(LOW), original(HIGH), runs(one=HIGH, other=HIGH)], ev.HOLDS),
        ([full(LOW), original(HIGH), runs(one=LOW, other=HIGH)], ev.UNDECIDED),
        ([full(HIGH), original(HIGH), runs(one=HIGH, other=LOW)], ev.FAILS),
    ],
    "projections_double": [
        ([sizes(identity=70, projection=136), whole(25, 40)], ev.HOLDS),
        ([sizes(identity=70, projection=105), whole(25, 40)], ev.FAILS),
        ([sizes(identity=70, projection=136), whole(25, 50)], ev.FAILS),
    ],
    "path_lengths": [
        ([{"mean": 27.0, "19 to 35": 0.98}], ev.HOLDS),
        ([{"mean": 27.0, "19 to 35": 0.94}], ev.FAILS),
    ],
    "short_paths_are_few": [
        ([{"5 to 17": 0.0045}], ev.HOLDS),
        ([{"5 to 17": 0.0055}], ev.FAILS),
    ],
    "surviving_paths": [
        ([{"after 10 deletions": 1 / 1024}], ev.HOLDS),
        ([{"after 10 deletions": 1 / 512}], ev.FAILS),
    ],
    "single_deletions": [
        ([[deletions(1.0, 1.5, 40.0)] * 2], ev.HOLDS),
        ([[deletions(1.0, 4.0, 40.0)] * 2], ev.UNDECIDED),
        ([[deletions(1.0, 40.0, 40.0)] * 2], ev.FAILS),
        ([[deletions(1.0, 1.5, 40.0), deletions(1.0, 40.0, 40.0)]], ev.UNDECIDED),
        # A network that guesses cannot be harmed.
        ([[deletions(90.0, 90.0, base=90.0)] * 2], ev.UNDECIDED),
    ],
    "only_transitions": [
        ([[deletions(1.0, 5.5)] * 2], ev.HOLDS),
        ([[deletions(1.0, 5.5, transitions=(2.0,))] * 2], ev.UNDECIDED),
        ([[deletions(1.0, 6.5)] * 2], ev.FAILS),
    ],
    "vgg_deletions": [
        ([[deletions(90.0, 90.0, base=89.0)] * 2], ev.UNDECIDED),
        ([[deletions(85.0, 89.0)] * 2], ev.HOLDS),
        ([[deletions(85.0, 60.0)] * 2], ev.UNDECIDED),
        ([[deletions(85.0, 30.0)] * 2], ev.FAILS),
    ],
    "many_deletions": [
        ([[many(*EVEN)] * 2], ev.HOLDS),
        ([[many(*STEP)] * 2], ev.UNDECIDED),
        ([[many(*JUMP)] * 2], ev.FAILS),
        ([[many(*EVEN[::-1], base=30.0)] * 2], ev.FAILS),  # it falls
        ([[many(*JUMP, base=46.0)] * 2], ev.UNDECIDED),
    ],
    "reordering": [
        ([[orders(1, 2, 4, 8, 16)] * 2], ev.HOLDS),
        ([[orders(16, 2, 4, 8, 1)] * 2], ev.FAILS),
        ([[orders(4, 1, 16, 8, 2)] * 2], ev.UNDECIDED),  # a correlation of -0.1
        ([[orders(46, 47, 49, 53, 61, base=46.0)] * 2], ev.UNDECIDED),
    ],
    "gradient_by_length": [
        ([[gradients(3.0)] * 2], ev.HOLDS),
        ([[gradients(0.9)] * 2], ev.FAILS),
        # As far from end to end, but along a parabola.
        ([[gradients(3.0, bend=0.05)] * 2], ev.UNDECIDED),
    ],
    "short_paths_carry": [
        ([[gradients(3.0, peak=17)] * 2], ev.HOLDS),
        ([[gradients(3.0, peak=18)] * 2], ev.FAILS),
    ],
    "nine_to_18": [
        ([[gradients(3.0, peak=18)] * 2], ev.HOLDS),
        ([[gradients(3.0, peak=8)] * 2], ev.FAILS),
    ],
    "time_saved": [
        ([skip(0.76, 0.75, 0.77)], ev.HOLDS),
        ([skip(0.79, 0.78, 0.8)], ev.UNDECIDED),  # saves, but less
        ([skip(1.4, 1.3, 1.5)], ev.FAILS),
        ([skip(0.9, 0.6, 1.1)], ev.UNDECIDED),
    ],
    "more_time_saved": [
        ([skip(0.62, 0.61, 0.63)], ev.HOLDS),
        ([skip(0.66, 0.65, 0.68)], ev.UNDECIDED),
        ([skip(1.4, 1.3, 1.5)], ev.FAILS),
    ],
    "linear_decay": [
        ([{"first": 1 - 0.5 / 54, "last": 0.5}], ev.HOLDS),
        ([{"first": 1.0, "last": 0.5}], ev.FAILS),
    ],
    "expected_depth": [
        ([{"blocks": 54, "expected_open": 40.25}], ev.HOLDS),
        ([{"blocks": 54, "expected_open": 40.5}], ev.FAILS),
    ],
    "ensemble": [
        ([[drawn(9.0, 2.0), drawn(5.0, 1.0), drawn(7.0, 1.5)]], ev.HOLDS),
        ([[drawn(2.0, 9.0), drawn(1.0, 5.0), drawn(1.5, 7.0)]], ev.FAILS),
        # Paired: the difference is small, and of equal sign in every network.
        ([[drawn(9.0, 8.9), drawn(5.0, 4.88), drawn(1.0, 0.9)]], ev.HOLDS),
    ],
    "larger_gradients": [
        (
            [
                [first_gradients(n, 2 * n) for n in HIGH],
                [first_gradients(n, 2 * n) for n in LOW],
            ],
            ev.HOLDS,
        ),
        (
            [
                [first_gradients(n, 2 * n) for n in LOW],
                [first_gradients(n, 2 * n) for n in HIGH],
            ],
            ev.FAILS,
        ),
    ],
    "early_blocks_matter": [
        ([[damage(-0.8)] * 2], ev.HOLDS),
        ([[damage(-0.1, p_value=0.4)] * 2], ev.UNDECIDED),
        ([[damage(None)] * 2], ev.UNDECIDED),
        ([[damage(0.1)] * 2], ev.FAILS),
    ],
    "robust_to_deletion": [
        ([ROBUST, FRAGILE], ev.HOLDS),
        ([FRAGILE, ROBUST], ev.FAILS),
        ([ROBUST, ROBUST], ev.UNDECIDED),
        ([ROBUST[:1], FRAGILE[:1]], ev.UNDECIDED),
    ],
    "deeper": [
        ([{"resnet20": 1e-7}], ev.HOLDS),
        ([{"resnet20": 1e-7, "plain20": 0.1}], ev.FAILS),
    ],
    "not_computed": [
        (
            [
                {
                    "finite_logits": 1.0,
                    "largest_gradient": math.nan,
                    "largest_change_of_statistics": 0.0,
                }
            ],
            ev.FAILS,
        ),
    ],
    "equal_forms": [
        ([{"form a": 1e-7}], ev.HOLDS),
        ([{"form a": 1e-7, "form b": 0.1}], ev.FAILS),
    ],
    "highway": [
        ([runs(open=LOW, independent=HIGH)], ev.HOLDS),
        ([runs(open=HIGH, independent=LOW)], ev.FAILS),
        ([runs(open=LOW, independent=GUESSES)], ev.UNDECIDED),
    ],
    "alexnet_layers": [
        ([{"alexnet_2012 convolutions": 5}], ev.HOLDS),
        ([{"alexnet_2012 convolutions": 8}], ev.FAILS),
    ],
    "vgg_layers": [([{"vgg19": 19}], ev.HOLDS), ([{"vgg19": 16}], ev.FAILS)],
    "googlenet_layers": [
        ([{"googlenet_2014": 22}], ev.HOLDS),
        ([{"googlenet_2014": 27}], ev.FAILS),
    ],
    "fewer_settings": [
        ([{"resnext50_32x4d": 2, "googlenet": 6}], ev.HOLDS),
        ([{"resnext50_32x4d": 6, "googlenet": 6}], ev.FAILS),
    ],
    "dense_inputs": [
        ([{"growth_rate": 12, "initial": 16, "first_stage": [16, 28, 40]}], ev.HOLDS),
        ([{"growth_rate": 12, "initial": 16, "first_stage": [16, 28, 44]}], ev.FAILS),
    ],
}


# Claims that one row has a lower test error or training loss than another: these rows.
LOWER = {
    "single_layers": (
        "test error (%)",
        "resnet110_he2015",
        "single_layer",
    ),
    "short_paths_suffice": ("test error (%)", "short_paths", "preact_resnet110"),
    "linear_beats_uniform": ("test error (%)", "resnet110_sd", "uniform"),
    "degradation": ("training loss", "plain20", "plain110"),
    "degradation_short": ("training loss", "plain20", "plain56"),
    "depth_short": ("training loss", "resnet56", "resnet20"),
    "better_on_few_images": ("test error (%)", "stochastic", "constant"),
    "not_overfitting": ("training loss", "resnet110_he2015", "plain110"),
    "trainable": ("test error (%)", "resnet110_he2015", "plain110"),
    "gain_from_depth": ("test error (%)", "resnet110_he2015", "resnet20"),
    "converges": ("training loss", "resnet20", "plain20"),
    "preactivation_110": ("test error (%)", "preact_resnet110", "resnet110_he2015"),
    "preactivation_regularises": (
        *("training loss", "resnet110_he2015", "preact_resnet110"),
    ),
    "stochastic_depth_is_better": ("test error (%)", "resnet110_sd", "resnet110"),
    "regularises": ("training loss", "resnet110", "resnet110_sd"),
    "better_than_dropout": ("test error (%)", "resnet110_sd", "dropout"),
}


def test_every_judge_is_tested():
    judged = {n for n, claim in CLAIMS.items() if claim.judge}
    assert {*CASES, *LOWER} == judged - {*OF_OTHER_NETWORKS}


# Claims of Veit et al. 2016 for other networks than theirs, and their evidence.
SHORT = ev.Runs("short_cifar", ("resnet56",), "cifar10")
OF_OTHER_NETWORKS = {
    f"{claim}_{ending}": (claim, ev.Studies(runs, (study,), *how))
    for ending, runs, *how in (
        ("original", ev.Runs("digits", ("resnet110_he2015",))),
        ("short", SHORT, 500, 3),
    )
    for claim, study in (
        ("single_deletions", "delete_one"),
        ("only_transitions", "delete_one"),
        ("many_deletions", "delete_many"),
        ("reordering", "permute"),
        ("gradient_by_length", "path_gradients"),
    )
}


@pytest.mark.parametrize("name", OF_OTHER_NETWORKS)
def test_claims_of_other_networks_are_judged_as_the_papers(name):
    of_paper, evidence = OF_OTHER_NETWORKS[name]
    claim = CLAIMS[name]
    assert claim.evidence == (evidence,)
    network = "CIFAR-10" if evidence.runs == SHORT else "a ReLU after the sum"
    assert claim.says.endswith(f"{network}).")
    for [studies], verdict in CASES[of_paper]:
        only = [{evidence.names[0]: found[evidence.names[0]]} for found in studies]
        assert claim.judge(only).verdict == verdict


@pytest.mark.parametrize("name", LOWER)
def test_which_row_is_lower(name):
    quantity, one, other = LOWER[name]
    for here, there, verdict in (
        (LOW, HIGH, ev.HOLDS),
        (HIGH, LOW, ev.FAILS),
        (WIDE, WIDE[::-1], ev.UNDECIDED),
    ):
        seen = CLAIMS[name].judge(runs(**{one: here}), runs(**{other: there}))
        assert seen.verdict == verdict
        assert seen.text.startswith(f"{quantity}: {one} ")
    trained = [row for evidence in CLAIMS[name].evidence for row in evidence.rows]
    assert sorted(trained) == sorted([one, other])


@pytest.mark.parametrize(
    ("name", "loaded", "verdict"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_verdicts(name, loaded, verdict):
    seen = CLAIMS[name].judge(*loaded)
    assert seen.verdict == verdict and seen.text


def test_text_has_the_number_of_each_seed():
    seen = CLAIMS["only_transitions"].judge([deletions(5.0), deletions(20.0)])
    assert "costs up to 4, 19 points, one that changes the shape up to 89" in seen.text
    assert seen.text.endswith("(in 1 of 2 networks)")
    seen = CLAIMS["only_transitions"].judge([deletions(5.0, transitions=(0.7,))])
    assert "changes the shape up to 0 (in" in seen.text


@pytest.mark.parametrize("name", CLAIMS)
def test_rows_are_those_of_tables(name):
    claim = CLAIMS[name]
    for evidence in claim.evidence:
        runs = getattr(evidence, "runs", evidence)
        if isinstance(runs, ev.Runs):
            assert set(runs.rows) <= set(TABLES[runs.table].rows)
    if "experiments.reproduce" in claim.command:
        options = dict(o[2:].split("=") for o in claim.command.split()[3:])
        rows = options.get("only", "").split(",") if "only" in options else []
        assert set(rows) <= set(TABLES[options["table"]].rows)
