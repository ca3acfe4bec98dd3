# SPDX-License-Identifier: Apache-2.0
"""Weighted residuals by NumPy."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.preact import ReluBeforeAddition
from rn_jax.models.weighted import WeightedResidual


def test_the_branch_has_a_weight_between_minus_one_and_one(quick_compile):
    fields = (8, 1, "A", Conv, partial(BatchNorm, use_running_average=True), nn.relu)
    block, unit = WeightedResidual(*fields), ReluBeforeAddition(*fields)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype("float32")
    variables = jax.jit(partial(block.init, train=False))(jax.random.key(0), x)
    apply = jax.jit(partial(block.apply, train=False))
    np.testing.assert_array_equal(apply(variables, x), x)  # at first alpha is 0
    params = dict(variables["params"])
    assert params.pop("weight") == 0
    f = np.asarray(unit.apply({**variables, "params": params}, x, train=False)) - x
    assert f.min() >= -1e-6 and f.max() > 0.1
    for a in (-3.0, 0.5, 40.0):
        weighted = {**variables, "params": {**params, "weight": jnp.float32(a)}}
        y = apply(weighted, x, jnp.float32(2))
        np.testing.assert_allclose(y, x + 2 * np.tanh(a) * f, rtol=1e-4, atol=1e-5)
