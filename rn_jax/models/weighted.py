# SPDX-License-Identifier: Apache-2.0
"""Weighted Residuals for Very Deep Networks (Shen, Gan and Zeng 2016; 1605.08831)."""

import flax.linen as nn
import jax.numpy as jnp

from rn_jax.models.gating import scale
from rn_jax.models.preact import ReluBeforeAddition


class WeightedResidual(ReluBeforeAddition):
    """h(x) + alpha F(x), with one learned alpha in (-1, 1), at first 0.

    F is W-BN-ReLU-W-BN-ReLU and nothing follows the sum, so that alpha gives the branch
    its sign. The paper projects alpha onto (-1, 1) after every step of SGD; here alpha
    is tanh(a) of a parameter a, whose slope at 0 is 1 as well. A gate multiplies
    alpha F(x).
    """

    begins_closed = True

    def residual(self, x, *, train: bool):
        """Return alpha F(x)."""
        a = self.param("weight", nn.initializers.zeros, (), jnp.float32)
        return scale(jnp.tanh(a), super().residual(x, train=train))
