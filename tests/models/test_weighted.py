# SPDX-License-Identifier: Apache-2.0
"""Weighted residuals by NumPy."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from by_numpy import np_conv, np_norm

from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.weighted import WeightedResidual


def test_the_branch_has_a_weight_between_minus_one_and_one():
    fields = (8, 1, "A", Conv, partial(BatchNorm, use_running_average=True), nn.relu)
    block = WeightedResidual(*fields)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype("float32")
    init = jax.jit(partial(block.init, train=False))
    variables = jax.device_get(init(jax.random.key(0), x))
    apply = jax.jit(partial(block.apply, train=False))
    np.testing.assert_array_equal(apply(variables, x), x)  # at first alpha is 0
    params = dict(variables["params"])
    assert params.pop("weight") == 0
    f = x
    for i in (1, 2):
        f = np_conv(f, params[f"conv{i}"])
        f = np_norm(f, params[f"bn{i}"], variables["batch_stats"][f"bn{i}"])
        f = np.maximum(f, 0)
    assert f.max() > 0.1
    for a in (-3.0, 0.5, 40.0):
        weighted = {**variables, "params": {**params, "weight": jnp.float32(a)}}
        y = apply(weighted, x, jnp.float32(2))
        np.testing.assert_allclose(y, x + 2 * np.tanh(a) * f, rtol=1e-4, atol=1e-5)
