# SPDX-License-Identifier: Apache-2.0
"""Paths through a residual network: how long they are and how much gradient they carry.

Unrolled, L residual blocks are 2^L paths: each takes the branch of some blocks and the
shortcut of the others, and its length is the number of branches (Veit et al. 2016,
sections 3 and 4.3).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rn_jax.models.network import Network


def length_distribution(probabilities: Sequence[float] | np.ndarray) -> np.ndarray:
    """Distribution of the number of branches taken: f64[L + 1], exact but for rounding.

    Block l is taken with probability p_l, independently of the others: the Poisson
    binomial distribution. With p_l = 1/2 it is the binomial one of all 2^L paths; with
    survival probabilities it is that of the depth while training.

    Args:
        probabilities: f[L].
    """
    distribution = np.ones(1)
    for p in np.asarray(probabilities, np.float64):
        distribution = np.convolve(distribution, [1 - p, p])
    return distribution


def share(weights: np.ndarray, low: int, high: int) -> float:
    """Share of the weights of lengths low..high, both included."""
    weights = np.asarray(weights, np.float64)
    return float(weights[low : high + 1].sum() / weights.sum())


def shortest_interval(weights: np.ndarray, least: float = 0.95) -> tuple[int, int]:
    """The shortest range of lengths with at least that share of the weights.

    Args:
        weights: f[L + 1], not negative.
        least: of their sum.

    Returns:
        First and last length. Of equally short ranges, the one that holds more.
    """
    reached = np.concatenate([[0], np.cumsum(weights, dtype=np.float64)])
    needed = least * reached[-1]
    for length in range(1, len(weights) + 1):
        held = reached[length:] - reached[:-length]
        if held.max() >= needed:
            low = int(held.argmax())
            return low, low + length - 1
    return 0, len(weights) - 1  # rounding alone can lead here


def draw_paths(
    rng: np.random.Generator, num_blocks: int, length: int, number: int
) -> np.ndarray:
    """Random paths of one length, all alike likely: f32[L, number].

    1 where a path takes the branch of a block, 0 where it takes the shortcut.
    """
    rank = rng.random((num_blocks, number)).argsort(axis=0).argsort(axis=0)
    return (rank < length).astype(np.float32)


def make_path_gradient(
    *, model: Network, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable:
    """Makes path_gradient(variables, gates, batch, paths) -> f32[B], compiled once.

    The Euclidean norm, per example, of the gradient of the cross-entropy by the
    normalised image, along a single path: the forward pass is whole, the backward pass
    goes through the branch of the path's blocks and the shortcut of the others
    (section 4.3).
    BatchNorm uses its moving averages, so examples do not depend on each other.

    Args:
        model: called with `train=False`, the gates f32[L], and paths f32[L, B], one
            for each example; or None, which is the sum over all paths.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
    """

    @jax.jit
    def path_gradient(variables, gates, batch, paths):
        def loss(images):
            logits: Any = model.apply(
                variables,
                images,
                train=False,
                gates=jnp.asarray(gates)[:, None],  # open blocks only: no conditionals
                paths=paths,
            )
            logits = logits.astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, batch["label"]
            ).sum()

        gradient = jax.grad(loss)(preprocess(batch["image"]))
        flat = gradient.reshape(len(gradient), -1).astype(jnp.float32)
        largest = jnp.abs(flat).max(axis=1, keepdims=True)  # squares alone vanish
        unit = flat / jnp.where(largest > 0, largest, 1)
        return largest[:, 0] * jnp.linalg.norm(unit, axis=1)

    return path_gradient
