# SPDX-License-Identifier: Apache-2.0
"""How residual branches begin: initial values, and Fixup's block by NumPy."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from by_numpy import np_conv

from rn_jax import InputError
from rn_jax.models import preact, starts
from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm, Identity
from rn_jax.models.resnet import BasicBlock, Block, Bottleneck, PlainLayer, ResNet
from rn_jax.models.resnext import SplitTransformMerge

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
def test_a_branch_is_zero_at_first_and_learns(kind, branch_init, learns, quick_compile):
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


def test_fixup_is_scaled_by_the_number_of_blocks_and_of_layers(quick_compile):
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
def test_fixup_by_numpy(kind, reference, quick_compile):
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
            {"branch_init": "skip_init", "block": PlainLayer, "shortcut": None},
            "needs a residual branch, which PlainLayer does not have",
        ),
        ({"branch_init": "zero_gamma", "block": Block}, "unlike that of Block"),
    ],
)
def test_combinations_that_do_not_work(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        ResNet((1, 1), features=(4, 8), **fields)
