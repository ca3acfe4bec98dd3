# SPDX-License-Identifier: Apache-2.0
"""Swapout (Singh, Hoiem and Forsyth 2016; 1605.06465)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rn_jax.models.gating import scale
from rn_jax.models.preact import FullPreactivation


class Swapout(FullPreactivation):
    """Theta_1 * x + Theta_2 * F(x), two Bernoulli masks over all units (equation 2).

    A unit thus reports 0, x, F(x) or x + F(x). At test the masks are replaced by their
    means theta_1 and theta_2, which is the paper's deterministic inference. For its
    stochastic inference, apply the network with `rngs={"dropout": key}` and average the
    probabilities over keys, as the study `gate_ensemble` does. theta_1 and theta_2
    change linearly over the blocks of the network, Linear(a, b) in the paper. A gate
    multiplies Theta_2 * F(x).

    Attributes:
        keep_shortcut: theta_1 in the first and in the last block.
        keep_branch: theta_2 in the first and in the last block.
    """

    keep_shortcut: Sequence[float] = (1.0, 0.5)
    keep_branch: Sequence[float] = (1.0, 0.5)

    per_block = ("depth",)

    def shortcut(self, x, *, train: bool, depth):  # type: ignore[override]
        """Return Theta_1 * x."""
        y = super().shortcut(x, train=train)
        return self._masked(y, self.keep_shortcut, depth, train)

    def residual(self, x, *, train: bool, depth):  # type: ignore[override]
        """Return Theta_2 * F(x)."""
        y = super().residual(x, train=train)
        return self._masked(y, self.keep_branch, depth, train)

    def _masked(self, x, keep, depth, train):
        first, last = keep
        keep = jnp.asarray(first + (last - first) * depth, jnp.float32)
        if not (train or self.has_rng("dropout")):
            return scale(keep, x)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(kept, x, 0)
