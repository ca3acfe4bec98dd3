# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-excitation by NumPy, on three blocks and with gates."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from by_numpy import np_conv, np_full_preactivation, np_norm

from rn_jax.models import squeeze_excite
from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm


def branch_of(block, variables, x):
    """What the block's branch returns, which the block sows."""
    apply = jax.jit(partial(block.apply, train=False, mutable=["intermediates"]))
    return apply(variables, x)[1]["intermediates"]["residual"][0]


def np_branch(x, variables):
    """W-BN-ReLU-...-W-BN, of two or three layers."""
    p, stats = variables["params"], variables["batch_stats"]
    layers = sum(name.startswith("conv") for name in p)
    for i in range(1, layers + 1):
        x = np_norm(np_conv(x, p[f"conv{i}"]), p[f"bn{i}"], stats[f"bn{i}"])
        x = np.maximum(x, 0) if i < layers else x
    return x


@pytest.mark.parametrize(
    ("kind", "f"),
    [
        (squeeze_excite.ExcitedBasicBlock, np_branch),
        (squeeze_excite.ExcitedBottleneck, np_branch),
        (squeeze_excite.ExcitedPreactivation, np_full_preactivation),
    ],
)
def test_the_branch_is_weighted_by_channel(kind, f):
    fields = {
        "features": 8,
        "stride": 1,
        "shortcut_kind": "A",
        "conv": Conv,
        "norm": partial(BatchNorm, use_running_average=True),
        "activation": nn.relu,
    }
    block = kind(reduction=4, **fields)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 4, 8)).astype("float32")
    shapes = jax.eval_shape(partial(block.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.9, leaf.shape).astype("float32") - 0.2, shapes
    )
    stats = variables["batch_stats"]
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.3, stats)
    excited = branch_of(block, variables, x)
    p = variables["params"]
    squeeze, excite = p.pop("squeeze"), p.pop("excite")
    assert squeeze["kernel"].shape == (1, 1, 8, 2)
    y = f(x, variables)
    z = y.mean((1, 2)) @ squeeze["kernel"][0, 0] + squeeze["bias"]
    z = np.maximum(z, 0) @ excite["kernel"][0, 0] + excite["bias"]
    s = 1 / (1 + np.exp(-z))
    assert 0.01 < s.min() and np.ptp(s) > 0.01
    np.testing.assert_allclose(excited, s[:, None, None] * y, rtol=1e-5, atol=1e-5)


def test_narrow_blocks_squeeze_to_one_value():
    """With the paper's reduction of 16, eight channels would leave half a value."""
    norm = partial(BatchNorm, use_running_average=True)
    block = squeeze_excite.ExcitedBasicBlock(8, 1, "A", Conv, norm, nn.relu)
    init = partial(block.init, jax.random.key(0), train=False)
    shapes = jax.eval_shape(init, np.zeros((1, 4, 4, 8), np.float32))["params"]
    assert shapes["squeeze"]["kernel"].shape == (1, 1, 8, 1)
    assert shapes["excite"]["kernel"].shape == (1, 1, 1, 8)
    assert block.closed_is_identity
