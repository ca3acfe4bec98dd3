# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth: Deep Networks with Stochastic Depth (Huang et al. 2016).

While training, block l of L computes

    H_l = ReLU(b_l f_l(H_{l-1}) + shortcut(H_{l-1})),   b_l ~ Bernoulli(p_l),

with one draw per block and mini-batch (section 3), and at test every block is open and
counts by its survival probability (equation 5):

    H_l = ReLU(p_l f_l(H_{l-1}) + shortcut(H_{l-1})).

Everything here is a pure function of its arguments; gates are ordinary arrays that a
network takes as data.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rn_jax.errors import InputError


@dataclass(frozen=True)
class StochasticDepth:
    """Settings of stochastic depth.

    Attributes:
        last_survival: p_L, the probability that the last block is open, in (0, 1].
            (It is _not_ a drop rate.)

    Raises:
        InputError: `last_survival` is outside (0, 1].
    """

    last_survival: float = 0.5

    def __post_init__(self):
        if not 0 < self.last_survival <= 1:
            raise InputError(
                "last_survival, the survival probability p_L of the last block, must "
                f"be in (0, 1], not {self.last_survival}."
            )


def survival_probs(settings: StochasticDepth, num_blocks: int) -> jax.Array:
    """Survival probabilities by linear decay (equation 4).

    p_l = 1 - (l / L) (1 - p_L) for l = 1..L: p_0 = 1 belongs to the input, so already
    the first block can be closed.

    Returns:
        f32[L].
    """
    depth = jnp.arange(1, num_blocks + 1, dtype=jnp.float32) / max(num_blocks, 1)
    return 1 - depth * (1 - settings.last_survival)


def sample_gates(
    key: jax.Array, settings: StochasticDepth, num_blocks: int
) -> jax.Array:
    """Gates of one mini-batch: b_l ~ Bernoulli(p_l), independent over the blocks.

    Every device that is given the same key draws the same gates, so that all skip the
    same blocks.

    Args:
        key: PRNG key of this step, such as `fold_in(key, step)`.
        settings: the survival probabilities' settings.
        num_blocks: L.

    Returns:
        f32[L] of zeros (closed) and ones (open).
    """
    open_ = jax.random.bernoulli(key, survival_probs(settings, num_blocks))
    return open_.astype(jnp.float32)


def test_gates(settings: StochasticDepth, num_blocks: int) -> jax.Array:
    """Gates at test: f32[L], the survival probabilities (equation 5)."""
    return survival_probs(settings, num_blocks)


def expected_open_blocks(settings: StochasticDepth, num_blocks: int) -> jax.Array:
    """Expected number of open blocks: f32[], (3 L - 1) / 4 at p_L = 0.5."""
    return survival_probs(settings, num_blocks).sum()
