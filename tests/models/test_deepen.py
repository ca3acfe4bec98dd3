# SPDX-License-Identifier: Apache-2.0
"""A deepened network computes what the shallow one did."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.core import freeze
from sizes import narrow

import rn_jax
from rn_jax import InputError, StochasticDepth, create_model, data, survival_probs
from rn_jax.models.deepen import _LAST_LAYER, deepen
from rn_jax.models.resnext import EarlyConcatenation, SplitTransformMerge

KEY = jax.random.key(0)
# The networks of `make test`.
QUICK = {"resnet20", "plain20", "preact_resnet110"}
# The first network of every kind of block, stem and shortcut that can be deepened.
NAMES = [
    "resnet20",
    "resnet152_svhn",
    "resnet18",
    "plain20",
    "plain18_max_pool",
    "resnet50",
    "resnet164",
    "wide_resnet50_2",
    "resnext29_8x64d",
    "resnext29_8x64d form a",
    "resnext29_8x64d form b",
    "resnet110_relu_only_preact",
    "resnet164_relu_only_preact",
    "preact_resnet110",
    "preact_resnet164",
    "preact_resnet152",
    "resnetv2_18",
    "resnetv2_50",
    "wrn28_10_dropout",
]


def of_name(name, **fields):
    name, _, form = name.partition(" form ")
    if form:
        fields["block"] = {"a": SplitTransformMerge, "b": EarlyConcatenation}[form]
    return narrow(name, **fields)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in NAMES],
)
def test_deepened_network_has_the_same_logits(name, random_variables):
    model = of_name(name)
    size = 16 if model.stem.startswith("imagenet") else 8
    variables = random_variables(model, (size, size, 3))
    images = np.random.default_rng(0).normal(size=(3, size, size, 3)).astype("float32")
    deeper, grown = deepen(model, variables, (4, 3), key=KEY)
    assert deeper.num_blocks == 7
    # The same variables with stochastic depth, which adds none.
    depth = StochasticDepth(0.2) if model.has_shortcuts else None
    with_depth = model.copy(stochastic_depth=depth)
    deeper_with_depth, _ = deepen(with_depth, variables, (4, 3), key=KEY)

    @jax.jit
    def all_logits(variables, grown):
        return [
            network.apply(its, images, train=False)
            for network, its in (
                (model, variables),
                (deeper, grown),
                (with_depth, variables),
                (deeper_with_depth, grown),
            )
        ]

    constant, deep, dropped, deep_dropped = all_logits(variables, grown)
    for ours, expected in ((deep, constant), (deep_dropped, dropped)):
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)
    assert np.allclose(dropped, constant) == (depth is None)

    # The added blocks can learn: what silences them has a gradient.
    def loss(params):
        logits, _ = deeper.apply(
            {**grown, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": KEY},
        )
        return (logits**2).sum()

    grads = jax.jit(jax.grad(loss))(grown["params"])
    for leaf in jax.tree.leaves(grads["stage1"]["blocks"]):
        assert np.isfinite(leaf).all()
    added = jax.tree.map(lambda leaf: leaf[-1], grads["stage1"]["blocks"])
    layers = _LAST_LAYER.get(model.block, ("conv",))
    silent = next(layer for layer in layers if layer in added)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(added[silent]))


# p_l of a network of 2 + 3 blocks, and of one of 4 + 4, by hand.
FORMS = {
    "linear": (StochasticDepth(0.5), (0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.5, 0.5)),
    "from zero": (
        StochasticDepth.preset("timm", last_survival=0.6),
        (1.0, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6),
    ),
    "torchvision": (
        StochasticDepth.preset("torchvision", last_survival=0.2),
        (1.0, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2, 0.2),
    ),
    "no scaling": (
        StochasticDepth(0.5, scaling="none", closed_statistics="updated"),
        (0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.5, 0.5),
    ),
    "uniform": (StochasticDepth(0.3, schedule="uniform"), (0.3,) * 8),
    "listed": (
        StochasticDepth(schedule=(0.3, 0.9, 0.4, 0.8, 0.5)),
        (0.3, 0.9, 0.9, 0.9, 0.4, 0.8, 0.5, 0.5),
    ),
    "exactly k": (StochasticDepth(schedule="uniform", num_open=2), (0.4,) * 8),
    "subset": (
        StochasticDepth(0.3, schedule="uniform", granularity="subset"),
        (0.3,) * 8,
    ),
}


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(f, marks=[pytest.mark.slow] * (f in ("from zero", "no scaling")))
        for f in FORMS
    ],
)
def test_old_blocks_keep_their_survival_probabilities(form, random_variables, tmp_path):
    settings, expected = FORMS[form]
    model = create_model(
        "resnet20", stage_sizes=(2, 3), features=(2, 4), stochastic_depth=settings
    )
    variables = random_variables(model, (8, 8, 3))
    deeper, grown = deepen(model, variables, (4, 4), key=KEY)
    probs = np.asarray(survival_probs(deeper.stochastic_depth, 8))
    np.testing.assert_allclose(probs, expected, rtol=1e-6)
    # To the last bit, and an added block as the one before it.
    old = np.asarray(survival_probs(settings, 5))
    np.testing.assert_array_equal(probs, old[[0, 1, 1, 1, 2, 3, 4, 4]])
    # Nothing else of the settings changes.
    assert deeper.stochastic_depth == dataclasses.replace(
        settings, schedule=deeper.stochastic_depth.schedule, num_open=None
    )

    path = tmp_path / "deeper.safetensors"
    rn_jax.save(path, deeper, grown)
    loaded, again = rn_jax.load(path)
    assert loaded == deeper
    jax.tree.map(np.testing.assert_array_equal, again, grown)
    same, _ = deepen(model, variables, (2, 3), key=KEY)
    assert same.stochastic_depth == settings


def test_variables_in_every_layout(random_variables):
    model = narrow("resnet20")
    variables = random_variables(model, (8, 8, 3))
    _, expected = deepen(model, variables, (3, 2), key=KEY)
    unstacked = rn_jax.unstack(variables)
    for given in (
        freeze(variables),
        {name: freeze(tree) for name, tree in variables.items()},
        unstacked,
        freeze(unstacked),
    ):
        _, grown = deepen(model, given, (3, 2), key=KEY)
        jax.tree.map(np.testing.assert_array_equal, grown, expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [24, 36])
def test_trained_network_with_stochastic_depth(size):
    model, variables = rn_jax.load("resnet110_sd_digits")
    deeper, grown = deepen(model, variables, (size,) * 3, key=KEY)
    stats = rn_jax.read_info("resnet110_sd_digits")["normalization"]
    images = data.load("digits").test.images
    images = data.normalize(images, stats["mean"], stats["std"])
    shallow, deep = (
        jax.jit(lambda v, x, network=network: network.apply(v, x, train=False))(
            v, images
        )
        for network, v in ((model, variables), (deeper, grown))
    )
    tolerance = 1e-5 * np.abs(shallow).max()
    np.testing.assert_allclose(deep, shallow, rtol=0, atol=tolerance)


def test_what_cannot_be_deepened(random_variables):
    key, small = KEY, {"stage_sizes": (1, 1, 1)}
    model = create_model("resnet20").copy(**small)
    variables = random_variables(model, (8, 8, 3))
    with pytest.raises(InputError, match=r"3 entries, none below \(1, 2, 1\)"):
        deepen(model.copy(stage_sizes=(1, 2, 1)), variables, (2, 1, 1), key=key)
    with pytest.raises(InputError, match="whole numbers of at least 1"):
        deepen(model, variables, (2, 0, 1), key=key)
    with pytest.raises(InputError, match="takes a ResNet, not a DenseNet"):
        deepen(create_model("densenet40_12"), {}, (14, 14, 14), key=key)
    with pytest.raises(InputError, match="3 entries"):
        deepen(model, variables, (2, 2), key=key)
    for name in (
        "resnet110_conv_shortcut",
        "resnet110_bn_after_addition",
        "resnet110_relu_before_addition",
    ):
        model = create_model(name).copy(**small)
        with pytest.raises(InputError, match="cannot both be the identity"):
            deepen(model, variables, (2, 2, 2), key=key)
