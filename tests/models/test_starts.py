# SPDX-License-Identifier: Apache-2.0
"""How residual branches begin: initial values, and Fixup's block by NumPy."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import np_conv
from sizes import narrow

from rn_jax import InputError, create_model, unstack
from rn_jax.models import MODELS, preact, starts
from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm, Identity
from rn_jax.models.resnet import BasicBlock, Block, Bottleneck, PlainLayer, ResNet
from rn_jax.models.resnext import SplitTransformMerge
from rn_jax.models.starts import ResidualNetwork
from rn_jax.models.weighted import WeightedResidual

SHAPE = (2, 4, 4, 8)
SPLIT = partial(SplitTransformMerge, groups=2, base_width=64)
FIELDS = {"shortcut_kind": "A", "conv": Conv, "activation": nn.relu}


def relu(x):
    return np.maximum(x, 0)


def block_of(kind, branch_init, norm, num_blocks=16, **fields):
    """A block of 8 channels that begins in this way, and its variables."""
    made = partial(kind, norm=norm, **FIELDS, **fields)
    block = starts.begin(branch_init, made, num_blocks)(features=8, stride=1)
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    init = jax.jit(partial(block.init, train=False))
    return block, init(jax.random.key(0), x), x


@pytest.mark.parametrize(
    ("kind", "branch_init", "learns"),
    [
        (BasicBlock, "zero_gamma", ("bn2", "scale")),
        (Bottleneck, "zero_gamma", ("bn3", "scale")),
        (SPLIT, "zero_gamma", ("bn3", "scale")),
        (preact.ReluOnlyPreactivation, "zero_gamma", ("bn2", "scale")),
        (BasicBlock, "skip_init", ("scalar",)),
        (preact.FullPreactivation, "re_zero", ("scalar",)),
        (BasicBlock, "fixup", ("conv2", "kernel")),
        (
            partial(preact.FullPreactivation, bottleneck=True),
            "fixup",
            ("conv3", "kernel"),
        ),
    ],
)
def test_a_branch_is_zero_at_first_and_learns(kind, branch_init, learns):
    norm = partial(BatchNorm, use_running_average=True)
    norm = Identity if branch_init == "fixup" else norm
    block, variables, x = block_of(kind, branch_init, norm)

    weights = np.random.default_rng(1).normal(size=SHAPE).astype("float32")

    @jax.jit
    def gradient(params):
        def total(params):
            y = block.apply({**variables, "params": params}, x, train=False)
            return (y * weights).sum(), y

        return jax.grad(total, has_aux=True)(params)

    slopes, y = gradient(variables["params"])
    np.testing.assert_array_equal(y, x if "preact" in repr(kind) else relu(x))
    value, slope = variables["params"], slopes
    for key in learns:
        value, slope = value[key], slope[key]
    assert not np.any(value) and np.any(slope)


def test_fixup_is_scaled_by_the_number_of_blocks_and_of_layers():
    for kind, power in ((BasicBlock, -1 / 2), (Bottleneck, -1 / 4)):
        _, one, _ = block_of(kind, "fixup", Identity, num_blocks=1)
        _, many, _ = block_of(kind, "fixup", Identity, num_blocks=16)
        for layer in [f"conv{i}" for i in range(1, kind.branch_depth)]:
            a, b = (v["params"][layer]["kernel"] for v in (one, many))
            assert np.any(a)
            np.testing.assert_allclose(b, 16.0**power * a, rtol=1e-5)


def basic(p, x):
    """The order of the authors' FixupBasicBlock, with its names on the left."""
    bias1a, bias1b = p["conv1_bias"]["bias"], p["bn1"]["bias"]
    bias2a, bias2b = p["conv2_bias"]["bias"], p["bn2"]["bias"]
    y = relu(np_conv(x + bias1a, p["conv1"]) + bias1b)
    return relu(x + p["bn2"]["scale"] * np_conv(y + bias2a, p["conv2"]) + bias2b)


def preactivation(p, x):
    y = relu(x + p["bn1"]["bias"]) + p["conv1_bias"]["bias"]
    y = relu(np_conv(y, p["conv1"]) + p["bn2"]["bias"]) + p["conv2_bias"]["bias"]
    return x + p["scalar"] * np_conv(y, p["conv2"])


@pytest.mark.parametrize(
    ("kind", "reference"),
    [(BasicBlock, basic), (preact.FullPreactivation, preactivation)],
)
def test_fixup_by_numpy(kind, reference):
    block, variables, x = block_of(kind, "fixup", Identity)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype("float32"), variables["params"]
    )
    y = jax.jit(partial(block.apply, train=True))({"params": params}, x)
    np.testing.assert_allclose(y, reference(params, x), rtol=1e-4, atol=1e-3)


def test_fixup_has_scalars_in_place_of_batch_norm():
    model = ResNet((2, 2), features=(4, 8), branch_init="fixup", norm=Identity)
    tree = jax.eval_shape(
        partial(model.init, train=False),
        {"params": jax.random.key(0)},
        jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"),
    )
    assert set(tree) == {"params"}
    assert tree["params"]["head_bias"]["bias"].shape == ()
    assert tree["params"]["stem_bn"]["bias"].shape == ()
    assert tree["params"]["stage2"]["blocks"]["bn2"]["scale"].shape == (1,)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"branch_init": "zero"}, "branch_init must be one of zero_gamma, .* 'zero'"),
        ({"branch_init": "fixup"}, "replaces BatchNorm: it needs norm=.*Identity"),
        ({"branch_init": "zero_gamma", "norm": Identity}, "needs a norm with a gamma"),
        (
            {"branch_init": "zero_gamma", "block": preact.FullPreactivation},
            "ends with BatchNorm, unlike that of FullPreactivation",
        ),
        (
            {
                "branch_init": "fixup",
                "norm": Identity,
                "block": preact.ReluBeforeAddition,
            },
            "ends with a convolution or BatchNorm, unlike that of ReluBeforeAddition",
        ),
        (
            {"branch_init": "skip_init", "block": WeightedResidual},
            "WeightedResidual takes no branch_init: a weight of its own is 0 at first",
        ),
        (
            {"branch_init": "skip_init", "block": PlainLayer, "shortcut": None},
            "needs a residual branch, which PlainLayer does not have",
        ),
        ({"branch_init": "zero_gamma", "block": Block}, "unlike that of Block"),
    ],
)
def test_combinations_that_do_not_work(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        ResNet((1, 1), features=(4, 8), **fields)


# The ways in which each family begins. "re_zero" is computed as "skip_init".
ALL = ("zero_gamma", "skip_init", "fixup")
WITHOUT_LAST_NORM = ("skip_init", "fixup")
FAMILIES = {
    "resnet20": (*ALL, "re_zero"),
    "resnet164": ALL,
    "resnet110_single_layer": ALL,
    "preact_resnet110": WITHOUT_LAST_NORM,
    "wrn16_8": WITHOUT_LAST_NORM,
    "resnext50_32x4d": ALL,
    "se_resnet110": ALL,
    "swapout32_w4": WITHOUT_LAST_NORM,
    "ror3_110": ALL,
    "ror3_wrn40_4": WITHOUT_LAST_NORM,
    "pyramidnet110_48": ALL,
    "inception_resnet_v2": ("skip_init",),
    "weighted_resnet110": (),
}
# The others are in `make test-all`.
QUICK = {"resnet20"}
CASES = [
    pytest.param(name, start, marks=[] if name in QUICK else pytest.mark.slow)
    for name, ways in FAMILIES.items()
    for start in ways
]


def begun(name, start, **fields):
    if start == "fixup":
        fields["norm"] = Identity
    return narrow(name, **fields).copy(branch_init=start, num_classes=None)


@pytest.mark.parametrize(("name", "start"), CASES)
def test_a_fresh_network_is_that_of_closed_gates_and_learns(name, start):
    """In every family: before the classifier, which is 0 at first with Fixup."""
    model = begun(name, start)
    rng = np.random.default_rng(0)
    size = 16 if getattr(model, "stem", "small") != "small" else 8
    images = rng.normal(size=(2, size, size, 3)).astype("float32")

    @jax.jit
    def run(key, weights):
        variables = model.init({"params": key}, images, train=False)

        def features(params, gates=None):
            own = {**variables, "params": params}
            return model.apply(own, images, train=False, gates=gates)

        def total(params):
            return (features(params) * weights).sum()

        params = variables["params"]
        closed = features(params, jnp.zeros(model.num_blocks))
        return features(params), closed, params, jax.grad(total)(params)

    weights = rng.normal(size=(1, 1)).astype("float32")
    fresh, closed, params, slopes = run(jax.random.key(0), weights)
    np.testing.assert_allclose(fresh, closed, rtol=1e-5, atol=1e-6)
    # The factor that closes the branch, one in every block, has a gradient.
    factor = {"zero_gamma": "scale", "fixup": "kernel"}.get(start, "scalar")
    leaves = jax.tree_util.tree_leaves_with_path(unstack({"params": params})["params"])
    slopes = jax.tree.leaves(unstack({"params": slopes})["params"])
    found = [
        np.any(slope)
        for (path, leaf), slope in zip(leaves, slopes, strict=True)
        if path[-1].key == factor and not np.any(leaf)
    ]
    assert found == [True] * model.num_blocks


def test_fixup_has_one_bias_before_the_first_convolution_of_a_pyramid_net():
    """In place of a BatchNorm that no activation follows."""
    model = begun("pyramidnet110_48", "fixup")
    tree = jax.eval_shape(
        partial(model.init, train=False),
        {"params": jax.random.key(0)},
        jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"),
    )
    assert set(tree["params"]["stage1"]["layer01"]) == {
        *("conv1_bias", "conv1", "bn2", "conv2_bias", "conv2", "bn3")
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_refuses_the_other_ways(name):
    for start in set(ALL) - set(FAMILIES[name]):
        sentence = "takes no branch_init" if not FAMILIES[name] else "unlike that of"
        with pytest.raises(InputError, match=sentence):
            begun(name, start)


def kind_of(name):
    """The class of a network, and that of its blocks if it has one of the table's."""
    model = create_model(name)
    block = getattr(model, "block_class", None)
    return type(model), block and block.__name__


# Plain layers, the ablations of He et al. 2016, and a bottleneck of a block that is
# tested.
NOT_TESTED = {
    *("PlainLayer", "DropoutBranch", "ConstantScaling", "ExclusiveGating"),
    *("ShortcutOnlyGating", "DropoutShortcut", "BatchNormAfterAddition"),
    *("ReluBeforeAddition", "ReluOnlyPreactivation", "ExcitedBottleneck"),
}


def test_every_residual_family_is_tested():
    kinds = {
        kind for kind in map(kind_of, MODELS) if issubclass(kind[0], ResidualNetwork)
    }
    others = kinds - {*map(kind_of, FAMILIES)}
    assert others == {(ResNet, name) for name in NOT_TESTED}
