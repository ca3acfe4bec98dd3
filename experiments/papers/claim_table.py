# SPDX-License-Identifier: Apache-2.0
"""The claims of the literature, with the evidence for each and how it is judged.

`experiments.claims` collects the evidence and writes docs/claims.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from experiments.papers import evidence as ev
from experiments.papers.evidence import (
    Benchmark,
    Evidence,
    Exact,
    Runs,
    Seen,
    Start,
    Studies,
    in_every_run,
    lower,
    of,
    proved,
)
from experiments.studies import branch_weights
from experiments.studies.delete_many import is_smooth, smoothness
from experiments.studies.delete_one import NEEDED, damages
from experiments.studies.feature_reuse import spread, weights_of_inputs
from experiments.studies.gradient_by_layer import FAR, ratio
from experiments.studies.layer_responses import typical
from experiments.studies.path_gradients import LINEAR, fit_quality, shrinkage
from experiments.studies.permute import GROWS, correlation
from experiments.studies.shortcut_gradient import UNCHANGED, by_block, by_stage, kept
from experiments.studies.words import UNHARMED, chance, too_near_chance
from rn_jax import data
from rn_jax.analysis import paths


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
        name: short name, for `experiments.claims --only`.
        source: paper and section.
        says: the claim, in one sentence.
        evidence: what the claim is judged by; none: a command that needs a GPU or a
            large data set.
        judge: what was seen, from the loaded evidence in order.
        command: the command that shows the claim, if it has no evidence here.
    """

    name: str
    source: str
    says: str
    evidence: tuple[Evidence, ...] = ()
    judge: Callable[..., Seen] | None = None
    command: str = ""


def _reproduce(table: str, only: str = "") -> str:
    rows = f" --only={only}" if only else ""
    return f"python -m experiments.reproduce --table={table}{rows}"


def _digits(*rows: str) -> Runs:
    """Return runs by He et al.'s recipe, or Huang et al.'s ("resnet110", "..._sd")."""
    return Runs("digits", rows)


def _short(*rows: str) -> Runs:
    return Runs("short_cifar", rows, "cifar10")


_PREACT_RUNS = Runs("ensembles", ("preact_resnet110",))
_DEPTH = _digits("resnet110", "resnet110_sd")
_FEW_IMAGES = Runs("few_images", ("stochastic", "constant"), "cifar10")
_PREACT_110 = (
    Runs("ensembles", ("preact_resnet110",), seeds=5),
    Runs("digits", ("resnet110_he2015",), seeds=5),
)
_REMEDIES = ("clipped", "adamw")
_BOUNDED = Runs(
    "large_gradients",
    tuple(f"{kind}_{how}" for kind in ("plain", "residual") for how in _REMEDIES),
)
_SIZES, _SHORTCUTS, _PATHS = map(Exact, ("sizes", "shortcuts", "path_lengths"))


def _preact(name: str) -> Studies:
    return Studies(_PREACT_RUNS, (name,))


def _original(*names: str) -> Studies:
    return Studies(_digits("resnet110_he2015"), names)


_DENSENET = Studies(Runs("ensembles", ("densenet40_12",)), ("feature_reuse",))
_DROPPED, _CONSTANT = (
    Studies(_digits(row), ("delete_one", "gradient_magnitude"))
    for row in ("resnet110_sd", "resnet110")
)
_VGG = Studies(Runs("ensembles", ("vgg15",)), ("delete_one",))
_PLAIN_20, _RESIDUAL_20 = (
    Studies(_digits(row), ("layer_responses", "branch_weights"))
    for row in ("plain20", "resnet20")
)
_SKIP = Benchmark("skip_resnet110_cpu.json", "python -m benchmarks.skip")

_ERROR, _LOSS = "test_error_percent", "train_loss"

# Below half of chance a network has learned the digits.
_LEARNED = 50 * (1 - 1 / data.get_spec("digits").num_classes)


def _rows(quantity, name, first, second):
    """Return a judge of whether a number is lower in the runs of one row."""

    def judge(*runs):
        found = {row: summaries for each in runs for row, summaries in each.items()}
        here, there = ((row, of(found, row, name)) for row in (first, second))
        return lower(here, there, quantity)

    return judge


def _percent(share, digits=0):
    return f"{100 * share:.{digits}f} %"


def _errors(first, second):
    return _rows("test error (%)", _ERROR, first, second)


def _losses(first, second):
    return _rows("training loss", _LOSS, first, second)


def _ratio(name, first, second, unit, scale, holds):
    """Return a judge of the ratio of the sizes of two networks."""

    def judge(sizes):
        here, there = sizes[first][name], sizes[second][name]
        text = f"{here / scale:,.2f} against {there / scale:,.2f} {unit}"
        return proved(f"{text}: {_percent(here / there, 1)}", holds(here / there))

    return judge


# --- Training deep networks is hard ---------------------------------------------------


def _deeper(found):
    worst = max(found.values())
    text = f"small networks with the blocks of {', '.join(found)}, made twice as deep"
    return proved(f"{text}: {_change_of_logits(worst)}", worst < 1e-5)


def _change_of_logits(relative):
    if relative == 0:
        return "the logits are equal"
    return f"the logits differ by {relative:.1g} of the largest"


def _deepened(studies):
    found = [study["deepen"]["deeper"] for study in studies]
    changes = [max(d["largest_change_of_probability"] for d in each) for each in found]
    text = f"largest change of a probability: {', '.join(f'{c:.1g}' for c in changes)}"
    held = [change < 1e-4 for change in changes]
    return in_every_run(text, held, [change > 0.01 for change in changes])


def _trains_on(studies):
    found = [study["deepen"]["trained_on"] for study in studies]
    losses = [(*each["train_loss"], each["train_loss_at_rate_0"]) for each in found]
    text = (
        f"loss on {found[0]['images']:,} training images before and after "
        f"{found[0]['steps']} steps, and after as many at a rate of 0: "
        + "; ".join(", ".join(f"{loss:.2g}" for loss in each) for each in losses)
    )
    # New statistics of BatchNorm, which a rate of 0 gives too, must not be the reason.
    lower_in = [last < min(first, still) for first, last, still in losses]
    return in_every_run(text, lower_in, [not lower for lower in lower_in])


def _ratios(studies):
    return [ratio(study["start"]) for study in studies]


def _shown(ratios):
    return ", ".join(f"{ratio:.2g}" for ratio in ratios)


_BY_LAYER = "gradient with respect to outputs, first layers divided by last"


def _vanishes(studies):
    found = _ratios(studies)
    text = f"{_BY_LAYER}: {_shown(found)}"
    return in_every_run(text, [r < 1 / FAR for r in found], [r >= 1 for r in found])


def _arrives(residual, plain):
    here, there = (np.abs(np.log10(_ratios(s))) for s in (residual, plain))
    quantity = (
        "orders of magnitude between the gradients with respect to the first and the "
        "last outputs"
    )
    return lower(("resnet110", here), ("plain110", there), quantity)


def _addressed(usual, without):
    here, there = _ratios(usual), _ratios(without)
    text = (
        f"{_BY_LAYER}: {_shown(here)} as published, {_shown(there)} with small initial "
        "weights and no BatchNorm"
    )
    pairs = list(zip(here, there, strict=True))
    held = [1 / FAR < a < FAR and b < 1 / FAR for a, b in pairs]
    refuted = [a < 1 / FAR or abs(np.log(a)) > abs(np.log(b)) for a, b in pairs]
    return in_every_run(text, held, refuted)


def _bounded(usual, bounded):
    """Judge whether plain-110 learns once a large gradient makes no large step."""
    errors = {"plain110": of(usual, "plain110", _ERROR)}
    errors |= {row: of(bounded, row, _ERROR) for row in bounded}
    losses = {
        row: of(runs, row, _LOSS)
        for runs in (usual, bounded)
        for row in errors
        if row in runs
    }
    text = ", ".join(
        f"{row} {ev.with_spread(each)} (loss {ev.with_spread(losses[row])})"
        for row, each in errors.items()
    )

    def learns(row, seeds=all):
        return seeds(error < _LEARNED for error in errors[row])

    verdict = ev.UNDECIDED
    if learns("plain110"):
        verdict = ev.FAILS  # it needs no remedy
    elif not learns("plain110", any) and all(
        learns(f"residual_{remedy}") for remedy in _REMEDIES
    ):
        if all(learns(f"plain_{remedy}") for remedy in _REMEDIES):
            verdict = ev.HOLDS
        elif not any(learns(f"plain_{remedy}", any) for remedy in _REMEDIES):
            verdict = ev.FAILS
    return Seen(f"test error (%), and training loss: {text}", verdict)


def _rise_of_loss(runs):
    def rise(kind):
        deep, shallow = (of(runs, f"{kind}{depth}", _LOSS) for depth in (56, 20))
        return [there - here for here, there in zip(shallow, deep, strict=True)]

    quantity = "rise of the training loss from 20 to 56 layers"
    first, second = ("residual", rise("resnet")), ("plain", rise("plain"))
    return lower(first, second, quantity)


def _by_layer(model, fields=()):
    return Start(model, "gradient_by_layer", fields)


_BARE = (("norm", "none"), ("kernel_init", "small_normal"))

_HARD = (
    Claim(
        "vanishing_gradient",
        "Secondary source: Fung 2017, An Overview of ResNet and its Variants",
        "Deep plain networks do not train because the gradient vanishes towards the "
        "first layers (plain-110, at the start).",
        (_by_layer("plain110"),),
        _vanishes,
    ),
    Claim(
        "normalisation",
        "He et al. 2015, section 1",
        "Normalised initialisation and BatchNorm have largely addressed vanishing and "
        "exploding gradients (plain-20, at the start).",
        (_by_layer("plain20"), _by_layer("plain20", _BARE)),
        _addressed,
    ),
    Claim(
        "shortcuts_keep_the_gradient",
        "He et al. 2016, section 2",
        "With shortcuts, the gradient changes less between the last and the first of "
        "110 layers (at the start).",
        (_by_layer("resnet110"), _by_layer("plain110")),
        _arrives,
    ),
    Claim(
        "exploding_gradient",
        "A question of this project, after He et al. 2015, section 4.1",
        "Plain-110 learns once a large gradient no longer causes a large step: with "
        "the gradient's norm clipped to 1, or by AdamW.",
        (_digits("plain110"), _BOUNDED),
        _bounded,
    ),
    Claim(
        "degradation",
        "He et al. 2015, section 1 and figure 6",
        "A deeper plain network ends with a higher training loss than a shallower one.",
        (_digits("plain20", "plain110"),),
        _losses("plain20", "plain110"),
    ),
    Claim(
        "not_overfitting",
        "He et al. 2015, section 1",
        "Overfitting does not cause the degradation: plain-110 fails on its training "
        "set, which the same layers with shortcuts fit.",
        (_digits("resnet110_he2015", "plain110"),),
        _losses("resnet110_he2015", "plain110"),
    ),
    Claim(
        "degradation_cifar",
        "He et al. 2015, figure 6",
        "On CIFAR-10, plain-56 has a higher training and test error than plain-20.",
        command=_reproduce("degradation", "plain20,plain56"),
    ),
    Claim(
        "degradation_short",
        "A question of this project, after He et al. 2015, figure 6",
        "In the last 500 of 1,000 steps on CIFAR-10, plain-56 has a higher training "
        "loss than plain-20.",
        (_short("plain20", "plain56"),),
        _losses("plain20", "plain56"),
    ),
    Claim(
        "shortcuts_short",
        "A question of this project, after He et al. 2015, figure 6",
        "In the last 500 of 1,000 steps on CIFAR-10, the training loss rises less from "
        "20 to 56 layers with shortcuts than without.",
        (_short("plain20", "plain56", "resnet20", "resnet56"),),
        _rise_of_loss,
    ),
    Claim(
        "depth_short",
        "A question of this project, after He et al. 2015, figure 6",
        "In the last 500 of 1,000 steps on CIFAR-10, ResNet-56 has a lower training "
        "loss than ResNet-20.",
        (_short("resnet20", "resnet56"),),
        _losses("resnet56", "resnet20"),
    ),
    Claim(
        "deeper",
        "He et al. 2015, section 1",
        "A deeper network need be no worse: its additional layers can be identities.",
        (Exact("deeper"),),
        _deeper,
    ),
    Claim(
        "deeper_when_trained",
        "He et al. 2015, section 1",
        "Identity blocks can be added to a trained ResNet-110 without changing what it "
        "predicts.",
        (_original("deepen"),),
        _deepened,
    ),
    Claim(
        "deeper_trains_on",
        "He et al. 2015, section 1",
        "The network to which identity blocks were added can be trained further.",
        (_original("deepen"),),
        _trains_on,
    ),
)

# --- Shortcuts ------------------------------------------------------------------------


def _parameter_free(sizes):
    plain, residual = sizes["plain110"], sizes["resnet110"]
    return proved(
        f"both have {plain['params']:,} parameters and {plain['multiply_adds']:,} "
        "multiply-adds",
        plain == residual,
    )


def _projections(sizes):
    a, b = sizes["resnet34 A"]["params"], sizes["resnet34 B"]["params"]
    c = sizes["resnet34 C"]["params"]
    return proved(
        f"ResNet-34 has {a:,} parameters with A, {b:,} with B and {c:,} with C",
        a < b < c < 1.06 * a,
    )


def _doubled(blocks, sizes):
    before, after = sizes["resnet50 B"], sizes["resnet50 C"]
    counted = "params", "multiply_adds"
    params, adds = (after[n] / before[n] for n in counted)
    block, work = (blocks["projection"][n] / blocks["identity"][n] for n in counted)
    return proved(
        f"a block has {block:.2f} times the parameters and {work:.2f} times the "
        f"multiply-adds; all of ResNet-50 has {params:.2f} and {adds:.2f} times",
        all(1.8 < ratio < 2.1 for ratio in (block, work))
        and all(1.5 < ratio < 1.7 for ratio in (params, adds)),
    )


# Less than half of the shortcut, or of the start, counts as small.
_SMALL = 0.5
# More than this share of the start has grown; after a short run it is as it began.
_GROWN = 1.1
# BatchNorm's scales that have changed by less are as at the start, as are responses.
_MOVED = 0.1


def _if_trained(seen, *networks):
    """Return the verdict, undecided if the scales of some network have not moved."""
    scales = [
        branch_weights.weights(study["branch_weights"])
        for studies in networks
        for study in studies
    ]
    if all(abs(scale - 1) >= _MOVED for scale in scales):
        return seen
    text = (
        f"{seen.text}; BatchNorm's scales have barely changed: {_shown(scales)} times "
        "those at the start"
    )
    return Seen(text, ev.UNDECIDED)


def _small(studies):
    medians = [branch_weights.median(s["branch_weights"], "response") for s in studies]
    found = [response for response in medians if response is not None]
    text = f"norm of a response over its shortcut's, median block: {_shown(found)}"
    seen = in_every_run(text, [r < _SMALL for r in found], [r >= 1 for r in found])
    return _if_trained(seen, studies)


def _smaller_responses(first, second):
    """Return a judge of whether the median response is lower in the first network."""

    def judge(here, there):
        one, other = (
            (name, [typical(study["layer_responses"]) for study in studies])
            for name, studies in ((first, here), (second, there))
        )
        seen = lower(one, other, "standard deviation of the median layer")
        return _if_trained(seen, here, there)

    return judge


def _towards_zero(residual, plain):
    here, there = (
        [branch_weights.weights(study["branch_weights"]) for study in studies]
        for studies in (residual, plain)
    )
    text = (
        "norm of BatchNorm's scales over that at the start, in the median block: "
        f"residual {_shown(here)}, plain {_shown(there)}"
    )
    pairs = zip(here, there, strict=True)
    return in_every_run(
        text, [a < min(_SMALL, b) for a, b in pairs], [a > _GROWN for a in here]
    )


_SHORTCUT = (
    Claim(
        "trainable",
        "He et al. 2015, section 4.2",
        "With shortcuts, 110 layers train.",
        (_digits("resnet110_he2015", "plain110"),),
        _errors("resnet110_he2015", "plain110"),
    ),
    Claim(
        "gain_from_depth",
        "He et al. 2015, table 6",
        "With shortcuts, the deeper network is more accurate: ResNet-110 against "
        "ResNet-20.",
        (_digits("resnet110_he2015", "resnet20"),),
        _errors("resnet110_he2015", "resnet20"),
    ),
    Claim(
        "converges",
        "He et al. 2015, section 4.1",
        "At a depth that both can train, the residual network reaches a lower training "
        "loss in as many epochs.",
        (_digits("resnet20", "plain20"),),
        _losses("resnet20", "plain20"),
    ),
    Claim(
        "parameter_free",
        "He et al. 2015, section 3.2",
        "Identity shortcuts add neither parameters nor computation.",
        (_SIZES,),
        _parameter_free,
    ),
    Claim(
        "projections",
        "He et al. 2015, section 4.1",
        "Projections add few parameters to ResNet-34: option A has the fewest, option "
        "C the most.",
        (_SHORTCUTS,),
        _projections,
    ),
    Claim(
        "projections_double",
        "He et al. 2015, section 4.1",
        "Projections in place of identities double the multiply-adds and parameters of "
        "a bottleneck.",
        (Exact("bottlenecks"), _SHORTCUTS),
        _doubled,
    ),
    Claim(
        "small_responses",
        "He et al. 2015, section 3.2",
        "Residual functions have small responses (ResNet-110).",
        (_original("branch_weights"),),
        _small,
    ),
    Claim(
        "responses_below_plain",
        "He et al. 2015, figure 7",
        "The layers of a residual network have smaller responses than those of its "
        "plain counterpart.",
        (_RESIDUAL_20, _PLAIN_20),
        _smaller_responses("resnet20", "plain20"),
    ),
    Claim(
        "responses_by_depth",
        "He et al. 2015, figure 7",
        "A deeper residual network has smaller responses: ResNet-110 against "
        "ResNet-20.",
        (_original("layer_responses", "branch_weights"), _RESIDUAL_20),
        _smaller_responses("resnet110", "resnet20"),
    ),
    Claim(
        "weights_towards_zero",
        "He et al. 2015, section 3.2",
        "If identities are optimal, training drives the weights of residual branches "
        "towards zero, unlike those of plain layers.",
        (_RESIDUAL_20, _PLAIN_20),
        _towards_zero,
    ),
    Claim(
        "single_layers",
        "He et al. 2015, section 3.2; He et al. 2016, table 3",
        "Shortcuts around single layers have no advantage: those around two layers "
        "give a lower test error (110 layers).",
        (
            _digits("resnet110_he2015"),
            Runs("units", ("single_layer",)),
        ),
        _errors("resnet110_he2015", "single_layer"),
    ),
    Claim(
        "options",
        "He et al. 2015, table 3",
        "Option B is slightly better than A, and C slightly better than B.",
        command=_reproduce("resnet_imagenet", "resnet34_a,resnet34_b,resnet34_c"),
    ),
    Claim(
        "complexity_34",
        "He et al. 2015, section 3.3",
        "A network of 34 layers has 18 % of the multiply-adds of VGG-19.",
        (_SIZES,),
        _ratio(
            "multiply_adds",
            *("plain34", "vgg19", "billion multiply-adds", 1e9),
            lambda r: abs(r - 0.18) < 0.01,
        ),
    ),
    Claim(
        "complexity_152",
        "He et al. 2015, section 4.1",
        "ResNet-152 has a lower complexity than VGG-16.",
        (_SIZES,),
        _ratio(
            "multiply_adds",
            *("resnet152", "vgg16", "billion multiply-adds", 1e9),
            lambda r: r < 1,
        ),
    ),
    Claim(
        "error_20",
        "He et al. 2015, table 6",
        "ResNet-20 has 8.75 % test error on CIFAR-10.",
        (
            Benchmark(
                "runs/resnet_cifar/resnet20-cifar10/seed0/summary.json",
                _reproduce("resnet_cifar", "resnet20"),
            ),
        ),
        lambda run: Seen(f"{run[_ERROR]:.2f} % in one run on a GPU", ev.UNDECIDED),
    ),
    Claim(
        "worse_at_1202",
        "He et al. 2015, section 4.2",
        "1,202 layers train, but their test error is higher than that of 110 layers.",
        command=_reproduce("resnet_cifar", "resnet110,resnet1202"),
    ),
)

# --- Where activations stand ----------------------------------------------------------


def _through_shortcuts(model):
    return Start(model, "shortcut_gradient")


_THROUGH = "share of the gradient that passes through the shortcuts alone"


def _passes(found):
    each = [[kept(study), *by_stage(study).values()] for study in found]
    worst = [max(abs(ratio - 1) for ratio in ratios) for ratios in each]
    text = f"{_THROUGH}: {_shown(map(kept, found))}"
    held = [change <= UNCHANGED for change in worst]
    return in_every_run(text, held, [change > 0.1 for change in worst])


def _cuts(found):
    values = [kept(study) for study in found]
    refuted = [value >= 1 - UNCHANGED for value in values]
    text = f"{_THROUGH}: {_shown(values)}"
    return in_every_run(text, [value < 0.5 for value in values], refuted)


def _halves(found):
    factors = [by_block(study) for study in found]
    text = f"factor of one block, in the median: {_shown(factors)}"
    held = [factor <= 0.5 + UNCHANGED for factor in factors]
    return in_every_run(text, held, [factor >= 1 for factor in factors])


def _cuts_less(start, trained):
    after = [kept(study["shortcut_gradient"]) for study in trained]
    before = [kept(study) for study in start]
    return lower(("at the start", before), ("trained", after), _THROUGH)


def _lowest(*each):
    """Judge whether the first row has a lower test error than every other one."""
    errors = {row: of(runs, row, _ERROR) for runs in each for row in runs}
    first, *others = errors.values()
    verdicts = [ev.compared(first, other)[1] for other in others]
    verdict = ev.UNDECIDED
    if ev.FAILS in verdicts:
        verdict = ev.FAILS
    elif all(one == ev.HOLDS for one in verdicts):
        verdict = ev.HOLDS
    shown = ", ".join(
        f"{row} {ev.with_spread(of_row)}" for row, of_row in errors.items()
    )
    return Seen(f"test error (%): {shown} ({len(first)} seeds)", verdict)


_ACTIVATIONS = (
    Claim(
        "identities_pass_the_gradient",
        "He et al. 2016, equation 5",
        "With identity shortcuts and no function after the sum, the gradient reaches "
        "every block of a stage unchanged through the shortcuts (pre-activation "
        "ResNet-110, at the start).",
        (_through_shortcuts("preact_resnet110"),),
        _passes,
    ),
    Claim(
        "relu_cuts_the_gradient",
        "He et al. 2016, section 4.2 (from memory)",
        "With a ReLU after the sum, less of the gradient arrives through the "
        "shortcuts, because many blocks cut it (ResNet-110, at the start).",
        (_through_shortcuts("resnet110"),),
        _cuts,
    ),
    Claim(
        "relu_cuts_less_after_training",
        "He et al. 2016, section 4.2 (from memory)",
        "After training, sums are more often positive, so the ReLU after the sum cuts "
        "less of the gradient.",
        (
            _through_shortcuts("resnet110"),
            _original("shortcut_gradient"),
        ),
        _cuts_less,
    ),
    Claim(
        "scaling_cuts_the_gradient",
        "He et al. 2016, equation 8",
        "Shortcuts scaled by 1/2 shrink the gradient exponentially with the number of "
        "blocks (here with a ReLU after each sum, which also cuts it).",
        (_through_shortcuts("resnet110_scaling_05_05"),),
        _halves,
    ),
    Claim(
        "identity_is_best",
        "He et al. 2016, table 1",
        "Scaling, gating, 1x1 convolutions and dropout on the shortcut all raise the "
        "test error (110 layers).",
        (
            _digits("resnet110_he2015"),
            Runs(
                "units",
                (
                    *("scaling", "exclusive_gating", "shortcut_gating"),
                    *("conv_shortcut", "dropout_shortcut"),
                ),
            ),
        ),
        _lowest,
    ),
    Claim(
        "activation_orders",
        "He et al. 2016, table 2",
        "Of five places for BatchNorm and ReLU, full pre-activation has the lowest "
        "test error (110 layers).",
        (
            _PREACT_RUNS,
            _digits("resnet110_he2015"),
            Runs("units", ("bn_after_addition", "relu_before_addition", "relu_only")),
        ),
        _lowest,
    ),
    Claim(
        "preactivation_110",
        "He et al. 2016, table 2",
        "With 110 layers, pre-activation has a lower test error than the original "
        "block.",
        _PREACT_110,
        _errors("preact_resnet110", "resnet110_he2015"),
    ),
    Claim(
        "preactivation_regularises",
        "He et al. 2016, section 4.2 (from memory)",
        "With 110 layers, pre-activation ends with a higher training loss than the "
        "original block.",
        _PREACT_110,
        _losses("resnet110_he2015", "preact_resnet110"),
    ),
    Claim(
        "preactivation_1001",
        "He et al. 2016, table 3",
        "With pre-activation, 1,001 layers are more accurate than 110 and 164.",
        command=_reproduce("preact_depth"),
    ),
)

# --- Paths ----------------------------------------------------------------------------


def _distribution(found):
    share = found["19 to 35"]
    return proved(
        f"mean {found['mean']:.0f}; {_percent(share, 1)} of the 2^54 paths have 19 to "
        "35 blocks",
        share > 0.95,
    )


def _damages(studies):
    """Return what each deletion within a stage costs in points, f[n] by network."""
    return [damages(study["delete_one"])[0] for study in studies]


def _lesions(text, studies, name, held, refuted):
    """Return the verdict of networks that are accurate enough to be damaged."""
    usable = [not too_near_chance(study[name]) for study in studies]
    held, refuted = (np.logical_and(usable, each).tolist() for each in (held, refuted))
    return in_every_run(text, held, refuted)


def _single_deletions(studies):
    each = _damages(studies)
    shares = ", ".join(_percent((d <= UNHARMED).mean()) for d in each)
    worst = ", ".join(f"{d.max():.0f}" for d in each)
    text = (
        f"{shares} of the deletions cost at most {UNHARMED:g} point, the worst {worst} "
        "points"
    )
    medians = [float(np.median(d)) for d in each]
    return _lesions(
        text,
        studies,
        "delete_one",
        [median <= UNHARMED for median in medians],
        [median > NEEDED for median in medians],
    )


def _only_transitions(studies):
    found = zip(*(damages(study["delete_one"]) for study in studies), strict=True)
    worst, across = ([float(d.max()) for d in each] for each in found)
    shown = [", ".join(f"{w:z.0f}" for w in each) for each in (worst, across)]
    text = (
        f"deleting a block within a stage costs up to {shown[0]} points, one that "
        f"changes the shape up to {shown[1]}"
    )
    pairs = zip(worst, across, strict=True)
    return _lesions(
        text,
        studies,
        "delete_one",
        [inner <= NEEDED < changing for inner, changing in pairs],
        [inner > NEEDED for inner in worst],
    )


def _fatal(studies):
    bases = [study["delete_one"]["baseline_error_percent"] for study in studies]
    pairs = zip(_damages(studies), bases, strict=True)
    least = [float(each.min()) + base for each, base in pairs]
    guess = chance(studies[0]["delete_one"])
    shown = ", ".join(f"{e:.0f}" for e in least)
    text = f"after the mildest deletion the error is {shown} %, chance is {guess:.0f} %"
    held = [e > 0.9 * guess for e in least]
    refuted = [e < guess / 2 for e in least]
    return _lesions(text, studies, "delete_one", held, refuted)


def _many_deletions(studies):
    found = [smoothness(study["delete_many"]) for study in studies]
    shown = ", ".join(f"{rho:.2f} and {step:.0f}" for rho, step in found)
    text = f"rank correlation, and largest step in points: {shown}"
    held = [is_smooth(rho, step) for rho, step in found]
    refuted = [rho <= 0 or step > 30 for rho, step in found]
    return _lesions(text, studies, "delete_many", held, refuted)


def _reordered(studies):
    rhos = [correlation(study["permute"]) for study in studies]
    shown = ", ".join(f"{rho:.2f}" for rho in rhos)
    text = f"rank correlation of Kendall's tau and the error: {shown}"
    held, refuted = [r < GROWS for r in rhos], [r >= 0 for r in rhos]
    return _lesions(text, studies, "permute", held, refuted)


def _shrinks(studies):
    found = [study["path_gradients"] for study in studies]
    factors, fits = map(shrinkage, found), map(fit_quality, found)
    pairs = list(zip(factors, fits, strict=True))
    shown = ", ".join(f"{factor:.2f} (R² = {fit:.3f})" for factor, fit in pairs)
    text = f"one more block divides the gradient along a path by {shown}"
    held = [factor > 1 and fit >= LINEAR for factor, fit in pairs]
    return in_every_run(text, held, [factor <= 1 for factor, _ in pairs])


def _carried(low, high):
    """Return a judge of whether paths of these lengths carry most of the gradient."""

    def judge(studies):
        found = [s["path_gradients"]["contribution"]["weights"] for s in studies]
        shares = [paths.share(weights, low, high) for weights in found]
        shown = ", ".join(map(_percent, shares))
        text = f"paths of {low} to {high} blocks carry {shown} of the gradient"
        held = [share > 0.5 for share in shares]
        return in_every_run(text, held, [share < 0.5 for share in shares])

    return judge


def _surviving(found):
    left = found["after 10 deletions"]
    return proved(
        f"10 deletions leave {_percent(left, 2)} of all paths", left == 2**-10
    )


def _tiny(found):
    share = found["5 to 17"]
    return proved(f"5 to 17 blocks: {_percent(share, 2)} of all paths", share < 0.005)


_OF_PATHS = (
    Claim(
        "path_lengths",
        "Veit et al. 2016, section 4.3",
        "Path lengths follow a binomial distribution: over 95 % of the paths of 54 "
        "blocks go through 19 to 35 of them.",
        (_PATHS,),
        _distribution,
    ),
    Claim(
        "single_deletions",
        "Veit et al. 2016, section 4.1",
        "Deleting most blocks of a residual network, one at a time, hardly changes the "
        "test error.",
        (_preact("delete_one"),),
        _single_deletions,
    ),
    Claim(
        "only_transitions",
        "Veit et al. 2016, section 4.1",
        "Only the deletion of a block that changes the shape has a visible effect.",
        (_preact("delete_one"),),
        _only_transitions,
    ),
    Claim(
        "vgg_deletions",
        "Veit et al. 2016, section 4.1",
        "Deleting any layer of VGG raises the error to chance.",
        (_VGG,),
        _fatal,
    ),
    Claim(
        "many_deletions",
        "Veit et al. 2016, section 4.2",
        "The error rises smoothly with the number of deleted blocks.",
        (_preact("delete_many"),),
        _many_deletions,
    ),
    Claim(
        "reordering",
        "Veit et al. 2016, section 4.2",
        "The error rises with the disorder of swapped blocks.",
        (_preact("permute"),),
        _reordered,
    ),
    Claim(
        "surviving_paths",
        "Veit et al. 2016, section 4.2",
        "Deleting d blocks leaves a share of 2^-d of all paths.",
        (_PATHS,),
        _surviving,
    ),
    Claim(
        "gradient_by_length",
        "Veit et al. 2016, section 4.3",
        "The gradient along a path shrinks exponentially with its length.",
        (_preact("path_gradients"),),
        _shrinks,
    ),
    Claim(
        "short_paths_carry",
        "Veit et al. 2016, section 4.3",
        "Most of the gradient comes from paths of 5 to 17 blocks.",
        (_preact("path_gradients"),),
        _carried(5, 17),
    ),
    Claim(
        "nine_to_18",
        "Secondary source: Fung 2017, An Overview of ResNet and its Variants",
        "Most of the gradient comes from paths of 9 to 18 blocks.",
        (_preact("path_gradients"),),
        _carried(9, 18),
    ),
    Claim(
        "short_paths_are_few",
        "Veit et al. 2016, section 4.3",
        "The paths of 5 to 17 blocks are only 0.45 % of all paths.",
        (_PATHS,),
        _tiny,
    ),
    Claim(
        "short_paths_suffice",
        "Veit et al. 2016, section 4.3",
        "Training on 23 of 54 blocks at a time lowers the test error slightly.",
        (Runs("units", ("short_paths",)), _PREACT_RUNS),
        _errors("short_paths", "preact_resnet110"),
    ),
)


def _elsewhere(ending: str, network: str, runs: Runs, **how: int) -> tuple[Claim, ...]:
    """Return claims of Veit et al. 2016 for the network of some runs."""
    names = (
        *("single_deletions", "only_transitions", "many_deletions"),
        *("reordering", "gradient_by_length"),
    )
    return tuple(
        replace(
            claim,
            name=f"{claim.name}_{ending}",
            source=f"A question of this project, after {claim.source}",
            says=f"{claim.says[:-1]} ({network}).",
            evidence=tuple(
                Studies(runs, of_paper.names, **how)
                for of_paper in claim.evidence
                if isinstance(of_paper, Studies)
            ),
        )
        for claim in _OF_PATHS
        if claim.name in names
    )


_ORIGINAL_NETWORK = "ResNet-110 on digits, with a ReLU after the sum"
_SHORT_NETWORK = "ResNet-56 after 1,000 steps on CIFAR-10"
_OF_OTHER_NETWORKS = (
    *_elsewhere("original", _ORIGINAL_NETWORK, _digits("resnet110_he2015")),
    *_elsewhere("short", _SHORT_NETWORK, _short("resnet56"), images=500, draws=3),
)

# --- Stochastic depth -----------------------------------------------------------------


def _expected(found):
    return proved(
        f"{found['expected_open']:.2f} of {found['blocks']} blocks are open on average",
        found["expected_open"] == 40.25,
    )


def _decay(found):
    return proved(
        f"p_1 = {found['first']:.3f}, p_54 = {found['last']:.3f}",
        abs(found["first"] - (1 - 0.5 / 54)) < 1e-6 and found["last"] == 0.5,
    )


def _not_computed(found):
    return proved(
        "with NaN as the parameters of a closed block, "
        f"{_percent(found['finite_logits'])} of the logits are finite; the largest "
        f"gradient by them is {found['largest_gradient']:g}, and the block's "
        f"statistics change by {found['largest_change_of_statistics']:g}",
        found["finite_logits"] == 1
        and found["largest_gradient"] == found["largest_change_of_statistics"] == 0,
    )


def _time(last_survival, saved):
    """Return a judge of the time of a step with stochastic depth."""

    def judge(result):
        found = result["ratio_to_constant"][f"drawn p_L={last_survival:g}"]
        low, high = found["quartile_1"], found["quartile_3"]
        text = (
            f"on a CPU a step takes {found['median']:.2f} times that of constant depth "
            f"(quartiles {low:.2f} and {high:.2f} of {result['rounds']} rounds)"
        )
        if low > 1:
            return Seen(text, ev.FAILS)
        # Within a tenth of the saving that the paper reports.
        return Seen(text, ev.HOLDS if high <= 1 - 0.9 * saved else ev.UNDECIDED)

    return judge


def _robust(dropped, constant):
    here, there = (
        [int((each > UNHARMED).sum()) for each in _damages(studies)]
        for studies in (dropped, constant)
    )
    quantity = f"deletions that cost more than {UNHARMED:g} point"
    return lower(("stochastic depth", here), ("constant depth", there), quantity)


def _larger_gradient(dropped, constant):
    here, there = (
        [np.log10(s["gradient_magnitude"]["first_gradient"]).mean() for s in studies]
        for studies in (dropped, constant)
    )
    quantity = "mean over epochs of log10 of the first block's gradient"
    return lower(("constant depth", there), ("stochastic depth", here), quantity)


def _early_blocks(studies):
    found = [s["survival_damage"]["spearman_without_transitions"] for s in studies]
    shown = ", ".join("none" if f is None else f"{f['rho']:.2f}" for f in found)
    text = f"rank correlation of depth and the damage of a deletion: {shown}"
    held = [
        f is not None and f["rho"] < 0 and f["p_value"] <= ev.SIGNIFICANCE
        for f in found
    ]
    return in_every_run(text, held, [f is not None and f["rho"] >= 0 for f in found])


def _ensemble(studies):
    each = [s["gate_ensemble"] for s in studies]
    rule = [s["test_rule_error_percent"] for s in each]
    single = [float(np.mean(s["error_percent"][0])) for s in each]
    here, there = ("test rule", rule), ("one network", single)
    seen = lower(here, there, "test error (%)", paired=True)
    whole = [float(np.mean(s["error_percent"][-1])) for s in each]
    size = each[0]["sizes"][-1]
    text = f"{seen.text}; average of {size} networks {ev.with_spread(whole)}"
    return Seen(text, seen.verdict)


_STOCHASTIC = (
    Claim(
        "linear_decay",
        "Huang et al. 2016, equation 4",
        "Survival probabilities fall linearly from 1 at the input to p_L.",
        (Exact("survival"),),
        _decay,
    ),
    Claim(
        "expected_depth",
        "Huang et al. 2016, section 3",
        "With p_L = 0.5, about 40 of 54 blocks are open in training.",
        (Exact("survival"),),
        _expected,
    ),
    Claim(
        "not_computed",
        "Huang et al. 2016, section 3",
        "A closed block is computed neither forward nor backward.",
        (Exact("closed_blocks"),),
        _not_computed,
    ),
    Claim(
        "time_saved",
        "Huang et al. 2016, section 4",
        "With p_L = 0.5, training takes about 25 % less time.",
        (_SKIP,),
        _time(0.5, 0.25),
    ),
    Claim(
        "more_time_saved",
        "Huang et al. 2016, section 4",
        "With p_L = 0.2, training takes about 40 % less time.",
        (_SKIP,),
        _time(0.2, 0.4),
    ),
    Claim(
        "stochastic_depth_is_better",
        "Huang et al. 2016, table 1",
        "Stochastic depth lowers the test error of ResNet-110.",
        (_DEPTH,),
        _errors("resnet110_sd", "resnet110"),
    ),
    Claim(
        "regularises",
        "Huang et al. 2016, section 4",
        "Stochastic depth ends with a higher training loss than constant depth.",
        (_DEPTH,),
        _losses("resnet110", "resnet110_sd"),
    ),
    Claim(
        "better_on_few_images",
        "A question of this project, after Huang et al. 2016, table 1",
        "On 5,000 images of CIFAR-10, without augmentation, stochastic depth lowers "
        "the test error of ResNet-32.",
        (_FEW_IMAGES,),
        _errors("stochastic", "constant"),
    ),
    Claim(
        "better_than_dropout",
        "A question of this project, after Huang et al. 2016",
        "At equal expected depth, stochastic depth has a lower test error than "
        "dropout between the convolutions.",
        (_digits("resnet110_sd"), Runs("stochastic_depth_dropout", ("dropout",))),
        _errors("resnet110_sd", "dropout"),
    ),
    Claim(
        "ensemble",
        "Huang et al. 2016, section 3",
        "The test rule has a lower test error than single networks drawn as in "
        "training.",
        (Studies(_digits("resnet110_sd"), ("gate_ensemble",)),),
        _ensemble,
    ),
    Claim(
        "stochastic_depth_cifar",
        "Huang et al. 2016, table 1",
        "On CIFAR-10, CIFAR-100 and SVHN stochastic depth has a lower test error.",
        command=_reproduce(
            "stochastic_depth", "stochastic,constant,stochastic_svhn,constant_svhn"
        ),
    ),
    Claim(
        "beyond_1000",
        "Huang et al. 2016, section 4",
        "With stochastic depth, 1,202 layers are more accurate than 110.",
        command=_reproduce("stochastic_depth", "stochastic,stochastic_1202"),
    ),
    Claim(
        "larger_gradients",
        "Huang et al. 2016, figure 7",
        "Stochastic depth has larger gradients in the first block.",
        (_DROPPED, _CONSTANT),
        _larger_gradient,
    ),
    Claim(
        "early_blocks_matter",
        "Huang et al. 2016, section 3",
        "Dropping an early block costs more than dropping a later one (at constant "
        "depth).",
        (Studies(_CONSTANT.runs, ("survival_damage",)),),
        _early_blocks,
    ),
    Claim(
        "linear_beats_uniform",
        "Huang et al. 2016, figure 8",
        "Linear decay is better than a uniform survival probability (at equal expected "
        "depth).",
        (
            _digits("resnet110_sd"),
            Runs("stochastic_depth_dropout", ("uniform",)),
        ),
        _errors("resnet110_sd", "uniform"),
    ),
    Claim(
        "robust_to_deletion",
        "Veit et al. 2016, section 4.3",
        "A network trained with stochastic depth is slightly more robust to deletions.",
        (_DROPPED, _CONSTANT),
        _robust,
    ),
)

# --- Dense and aggregated blocks ------------------------------------------------------


def _linear_growth(found):
    k, initial, inputs = (found[n] for n in ("growth_rate", "initial", "first_stage"))
    expected = [initial + k * (layer - 1) for layer in range(1, len(inputs) + 1)]
    shown = ", ".join(map(str, inputs[:3]))
    return proved(f"layers 1, 2, 3, ... have {shown}, ... maps", inputs == expected)


def _equal_forms(found):
    worst = max(found.values())
    return proved(_change_of_logits(worst), worst < 1e-5)


def _fewer_settings(found):
    here, there = found["resnext50_32x4d"], found["googlenet"]
    return proved(
        f"{here} numbers, cardinality and width, define all blocks of ResNeXt-50; "
        f"{there} widths define each Inception module of GoogLeNet",
        here < there,
    )


def _varies_more(studies):
    found = [study["combined_features"] for study in studies]
    names = "concatenated_ratio", "variance_ratio"
    pairs = [[float(np.median(each[name])) for name in names] for each in found]
    shown = ", ".join(f"{apart:.2f} against {summed:.2f}" for apart, summed in pairs)
    text = f"variance over the mean of both parts', in the median block: {shown}"
    held = [apart > summed for apart, summed in pairs]
    return in_every_run(text, held, [apart < summed for apart, summed in pairs])


# Random initial weights are spread as evenly as this, so they show no reuse.
_AS_AT_THE_START = 0.99


def _reused(studies):
    shares = [spread(study["feature_reuse"]) or 0.0 for study in studies]
    shown = ", ".join(map(_percent, shares))
    text = f"evenness of a layer's weights over its sources: {shown}"
    held = [0.5 < share < _AS_AT_THE_START for share in shares]
    return in_every_run(text, held, [share < 0.25 for share in shares])


def _least_used(studies):
    each = [weights_of_inputs(study["feature_reuse"])[1:] for study in studies]
    shown = "; ".join(", ".join(f"{w:.3f}" for w in weights) for weights in each)
    text = f"weight relative to that of the block's layers, by block: {shown}"
    held = [max(weights) < _AS_AT_THE_START for weights in each]
    refuted = [min(weights) > 1 / _AS_AT_THE_START for weights in each]
    return in_every_run(text, held, refuted)


_DENSE = (
    Claim(
        "equal_forms",
        "Xie et al. 2017, section 3.3",
        "Aggregated transformations, early concatenation and grouped convolutions are "
        "the same function.",
        (Exact("resnext_forms"),),
        _equal_forms,
    ),
    Claim(
        "same_complexity",
        "Xie et al. 2017, table 2",
        "ResNeXt-50 (32x4d) has the complexity of ResNet-50.",
        (_SIZES,),
        _ratio(
            "multiply_adds",
            *("resnext50_32x4d", "resnet50", "billion multiply-adds", 1e9),
            lambda r: abs(r - 1) < 0.05,
        ),
    ),
    Claim(
        "cardinality",
        "Xie et al. 2017, tables 3 and 4",
        "A larger cardinality lowers the error more than more depth or width.",
        command=_reproduce("resnext_imagenet"),
    ),
    Claim(
        "fewer_settings",
        "Secondary source: Fung 2017, An Overview of ResNet and its Variants",
        "Fewer numbers define a block of ResNeXt than an Inception module (so that it "
        "is easier to adapt to other data sets, which is not tested here).",
        (Exact("block_settings"),),
        _fewer_settings,
    ),
    Claim(
        "dense_inputs",
        "Huang et al. 2017, section 3",
        "Layer l has k_0 + k (l - 1) input maps.",
        (Exact("dense_inputs"),),
        _linear_growth,
    ),
    Claim(
        "feature_reuse",
        "Huang et al. 2017, section 5",
        "Layers spread their weights over many inputs of their block, so they reuse "
        "early features (DenseNet-40).",
        (_DENSENET,),
        _reused,
    ),
    Claim(
        "transitions_least_used",
        "Huang et al. 2017, section 5",
        "The layers of the second and third block weigh the output of the transition "
        "least (DenseNet-40).",
        (_DENSENET,),
        _least_used,
    ),
    Claim(
        "concatenation_varies_more",
        "Secondary source: Fung 2017, An Overview of ResNet and its Variants",
        "Concatenated features have a larger variance than summed ones (the branches "
        "and shortcuts of ResNet-110).",
        (_original("combined_features"),),
        _varies_more,
    ),
    Claim(
        "dense_parameters",
        "Huang et al. 2017, section 4.3",
        "DenseNet-BC-100 (k = 12) has less than a tenth of the parameters of "
        "pre-activation ResNet-1001.",
        (_SIZES,),
        _ratio(
            "params",
            *("densenet_bc100_12", "preact_resnet1001", "million parameters", 1e6),
            lambda r: r < 0.1,
        ),
    ),
    Claim(
        "dense_accuracy",
        "Huang et al. 2017, table 2",
        "DenseNet-BC-100 (k = 12) has the test error of pre-activation ResNet-1001 on "
        "CIFAR-10.",
        command=_reproduce("densenet", "bc100_12,preact_resnet1001"),
    ),
)

# --- What came before -----------------------------------------------------------------


def _no_better(runs):
    seen = _errors("open", "independent")(runs)
    errors = [*of(runs, "open", _ERROR), *of(runs, "independent", _ERROR)]
    if max(errors) < _LEARNED:
        return seen
    return Seen(f"{seen.text}; not all networks have learned", ev.UNDECIDED)


def _layers(name, number, what):
    return lambda found: proved(f"{found[name]} {what}", found[name] == number)


_BEFORE = (
    Claim(
        "alexnet_layers",
        "Krizhevsky et al. 2012, section 3.5",
        "AlexNet has five convolutional layers.",
        (Exact("depths"),),
        _layers("alexnet_2012 convolutions", 5, "convolutional layers"),
    ),
    Claim(
        "vgg_layers",
        "Simonyan and Zisserman 2015, table 1",
        "VGG-19 has 19 weighted layers.",
        (Exact("depths"),),
        _layers("vgg19", 19, "weighted layers"),
    ),
    Claim(
        "googlenet_layers",
        "Szegedy et al. 2015, section 5",
        "GoogLeNet has 22 weighted layers in sequence.",
        (Exact("depths"),),
        _layers("googlenet_2014", 22, "weighted layers"),
    ),
    Claim(
        "googlenet_parameters",
        "Szegedy et al. 2015, section 1",
        "GoogLeNet has a twelfth of the parameters of AlexNet.",
        (_SIZES,),
        _ratio(
            "params",
            *("googlenet_2014", "alexnet_2012", "million parameters", 1e6),
            lambda r: 1 / 13 < r < 1 / 11,
        ),
    ),
    Claim(
        "highway",
        "He et al. 2015, section 2; He et al. 2016, section 3",
        "A highway network is no better than the same network with both gates open, a "
        "residual network, although it can compute everything the latter can.",
        (Runs("highway_mnist", ("independent", "open"), seeds=5),),
        _no_better,
    ),
    Claim(
        "errors_before",
        "Krizhevsky et al. 2012, Simonyan and Zisserman 2015, Szegedy et al. 2015",
        "AlexNet, VGG and GoogLeNet reach their published errors on ImageNet.",
        command=_reproduce("before_resnets"),
    ),
)

GROUPS: dict[str, tuple[Claim, ...]] = {
    "Training deep networks is hard": _HARD,
    "Shortcuts": _SHORTCUT,
    "The position of activations": _ACTIVATIONS,
    "Paths": (*_OF_PATHS, *_OF_OTHER_NETWORKS),
    "Stochastic depth": _STOCHASTIC,
    "Dense and aggregated blocks": _DENSE,
    "What came before": _BEFORE,
}

CLAIMS = {claim.name: claim for group in GROUPS.values() for claim in group}
