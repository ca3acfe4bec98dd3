# SPDX-License-Identifier: Apache-2.0
"""Paths through a residual network: their lengths and the gradient that they carry.

L residual blocks unroll into 2^L paths. Each takes the branch of some blocks and the
shortcut of the others; its length is the number of branches (Veit et al. 2016, sections
3 and 4.3).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rn_jax.models.network import Network


def length_distribution(probabilities: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the distribution of the number of branches taken, f64[L + 1].

    Branch l is taken with probability p_l, independently of the others: the Poisson
    binomial distribution, exact up to rounding. With p_l = 1/2 it is the binomial
    distribution of all 2^L paths; with survival probabilities it is that of the number
    of open blocks in training.

    Args:
        probabilities: p_l, f[L].
    """
    distribution = np.ones(1)
    for p in np.asarray(probabilities, np.float64):
        distribution = np.convolve(distribution, [1 - p, p])
    return distribution


def surviving_share(deleted: int) -> float:
    """Return 2^-d, the share of the paths that avoid d deleted branches."""
    return 0.5**deleted


def share(weights: np.ndarray, low: int, high: int) -> float:
    """Return the share of the weights, f[L + 1], of lengths low to high inclusive."""
    weights = np.asarray(weights, np.float64)
    return float(weights[low : high + 1].sum() / weights.sum())


def shortest_interval(weights: np.ndarray, least: float = 0.95) -> tuple[int, int]:
    """Return the shortest range of lengths with at least a share of the weights.

    Args:
        weights: f[L + 1], not negative.
        least: smallest share of their sum.

    Returns:
        First and last length. Of equally short ranges, the one with the most weight.
    """
    reached = np.concatenate([[0], np.cumsum(weights, dtype=np.float64)])
    needed = least * reached[-1]
    for length in range(1, len(weights) + 1):
        held = reached[length:] - reached[:-length]
        if held.max() >= needed:
            low = int(held.argmax())
            return low, low + length - 1
    return 0, len(weights) - 1  # reached only through rounding


def draw_paths(
    rng: np.random.Generator, num_blocks: int, length: int, number: int
) -> np.ndarray:
    """Draw paths of one length uniformly, f32[L, number].

    An entry is 1 if the path takes the block's branch, 0 if it takes the shortcut.
    """
    # (num_blocks, number)
    rank = rng.random((num_blocks, number)).argsort(axis=0).argsort(axis=0)
    return (rank < length).astype(np.float32)


def make_path_gradient(
    *, model: Network, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable:
    """Make path_gradient(variables, gates, batch, paths) -> f32[B], compiled once.

    It returns, for each example, the Euclidean norm of the gradient of the
    cross-entropy in nats by the normalised image along a single path: the forward pass
    uses all blocks; the backward pass takes the branch of the path's blocks and the
    shortcut of the others (section 4.3). BatchNorm uses its moving averages, so
    examples are independent. `gates` are f32[L], `batch` has "image" uint8[B, H, W, C]
    and "label" i32[B], and `paths` are f32[L, B], or None for the sum over all paths.

    Args:
        model: network, called with `train=False`, the gates and the paths.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
    """

    @jax.jit
    def path_gradient(variables, gates, batch, paths):
        gates = jnp.asarray(gates)[:, None]  # all computed: no conditionals

        def loss(images):
            logits: Any = model.apply(
                variables, images, train=False, gates=gates, paths=paths
            )
            logits = logits.astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, batch["label"]
            ).sum()

        gradient = jax.grad(loss)(preprocess(batch["image"]))  # (B, H, W, C)
        flat = gradient.reshape(len(gradient), -1).astype(jnp.float32)  # (B, H W C)
        # Squares of small gradients would underflow.
        largest = jnp.abs(flat).max(axis=1, keepdims=True)
        unit = flat / jnp.where(largest > 0, largest, 1)
        return largest[:, 0] * jnp.linalg.norm(unit, axis=1)

    return path_gradient
