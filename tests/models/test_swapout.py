# SPDX-License-Identifier: Apache-2.0
"""Swapout: its rule at test, its masks, and its rates along the network."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from by_numpy import np_full_preactivation

import rn_jax
from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.preact import FullPreactivation
from rn_jax.models.resnet import ResNet
from rn_jax.models.swapout import Swapout

FIELDS = {
    "features": 8,
    "stride": 1,
    "shortcut_kind": "A",
    "conv": Conv,
    "norm": partial(BatchNorm, use_running_average=True),
    "activation": nn.relu,
}
X = np.random.default_rng(0).normal(size=(8, 8, 8, 8)).astype("float32")


def block_and_branch(**rates):
    """The block, its variables, and F(x) of a unit without masks."""
    block = Swapout(**FIELDS, **rates)
    init = jax.jit(partial(block.init, train=False))
    values = {"depth": jnp.float32(0)}
    variables = jax.device_get(init(jax.random.key(1), X, values=values))
    return block, variables, np_full_preactivation(X, variables)


def test_at_test_both_are_multiplied_by_their_rates():
    block, variables, f = block_and_branch(
        keep_shortcut=(1.0, 0.2), keep_branch=(0.6, 0.4)
    )
    apply = jax.jit(partial(block.apply, train=False))
    for depth, one, two in ((0.0, 1.0, 0.6), (0.25, 0.8, 0.55), (1.0, 0.2, 0.4)):
        y = apply(variables, X, None, None, {"depth": jnp.float32(depth)})
        np.testing.assert_allclose(y, one * X + two * f, rtol=1e-5, atol=1e-5)
    closed = apply(variables, X, jnp.float32(0), None, {"depth": jnp.float32(0.25)})
    np.testing.assert_allclose(closed, 0.8 * X, rtol=1e-6)


def test_a_sampled_unit_is_one_of_four_sums():
    """0, x, F or x + F, independently of each other, by its rates; with a key also at
    test, where it is the paper's stochastic inference."""
    block, variables, f = block_and_branch(
        keep_shortcut=(0.7, 0.7), keep_branch=(0.4, 0.4)
    )

    @partial(jax.jit, static_argnames="train")
    def sample(key, train):
        values = {"depth": jnp.float32(0.5)}
        rngs = {"dropout": key}
        return block.apply(variables, X, values=values, train=train, rngs=rngs)

    y = np.asarray(sample(jax.random.key(0), train=False))
    sums = np.stack([0 * X, X, f, X + f])
    nearest = np.abs(sums - y).argmin(0)
    np.testing.assert_allclose(
        np.take_along_axis(sums, nearest[None], 0)[0], y, atol=1e-5
    )
    shares = np.bincount(nearest.ravel(), minlength=4) / y.size
    expected = [0.3 * 0.6, 0.7 * 0.6, 0.3 * 0.4, 0.7 * 0.4]
    np.testing.assert_allclose(shares, expected, atol=0.04)
    other = sample(jax.random.key(1), train=False)
    assert np.any(other != y)
    np.testing.assert_array_equal(sample(jax.random.key(0), train=True), y)


def test_each_block_has_the_rates_of_its_place(random_variables):
    """In a scan and in a straight line, with gates or without; rates at blocks 0 to 3
    of 4 are (1, 0.9, 0.8, 0.7) and (0.8, 0.6, 0.4, 0.2)."""
    rates = {"keep_shortcut": (1.0, 0.7), "keep_branch": (0.8, 0.2)}
    model = ResNet((4,), features=(8,), block=Swapout, block_kwargs=rates)
    model = model.copy(num_classes=None)  # the pooled features
    variables = random_variables(model, (8, 8, 3))
    images = X[..., :3]

    def norm_of(p, name, x):
        own = {collection: tree[name] for collection, tree in p.items()}
        return BatchNorm(use_running_average=True).apply(own, x)

    @jax.jit
    def blockwise(p):
        y = Conv(8).apply({"params": p["params"]["stem_conv"]}, images)
        y = nn.relu(norm_of(p, "stem_bn", y))
        for i, (one, two) in enumerate(
            ((1.0, 0.8), (0.9, 0.6), (0.8, 0.4), (0.7, 0.2))
        ):
            unit = FullPreactivation(**FIELDS, activated=i == 0)
            f = unit.apply(rn_jax.block_variables(p, i), y, train=False) - y
            y = one * y + two * f
        return nn.relu(norm_of(p, "final_bn", y)).mean((1, 2))

    found = {}
    for unroll in (1, 4):
        features = model.copy(scan_unroll=unroll)
        apply = jax.jit(partial(features.apply, train=False))
        found[unroll] = apply(variables, images)
        gated = apply(variables, images, gates=jnp.ones(4))
        np.testing.assert_allclose(gated, found[unroll], rtol=1e-4, atol=1e-5)
    expected = blockwise(variables)
    for features in found.values():
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
