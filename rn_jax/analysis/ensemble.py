# SPDX-License-Identifier: Apache-2.0
"""Averaged predictions of networks drawn by stochastic depth or Swapout.

Huang et al. 2016, section 3, and Singh et al. 2016.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rn_jax.models.network import Network
from rn_jax.stochastic_depth import StochasticDepth, sample_gates


def make_probabilities(
    *, model: Network, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable:
    """Make probabilities(variables, gates, images, key=None) -> f32[N, B, K].

    `images` are uint8[N, B, H, W, C] in N batches, `gates` f32[L] of any values. With a
    key, networks that sample at test, such as Swapout, draw their masks anew in every
    batch. It is compiled once with a key and once without.

    Args:
        model: network of K classes, called with `train=False` and the gates.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
    """

    @jax.jit
    def probabilities(variables, gates, images, key=None):
        def of_batch(index, batch):
            rngs = {} if key is None else {"dropout": jax.random.fold_in(key, index)}
            logits: Any = model.apply(
                variables, preprocess(batch), train=False, gates=gates, rngs=rngs
            )
            return index + 1, jax.nn.softmax(logits.astype(jnp.float32))  # (B, K)

        return lax.scan(of_batch, 0, images)[1]

    return probabilities


def draw_networks(
    seed: int, settings: StochasticDepth, num_blocks: int, number: int
) -> np.ndarray:
    """Draw the gates of networks as for mini-batches of training, f32[number, L].

    Network i has the key fold_in(key(seed), i), so that more networks contain the
    fewer. A network has the same gates for all images, whatever the granularity.

    Args:
        seed: seed of the key.
        settings: stochastic depth with which the network was trained.
        num_blocks: L.
        number: number of networks.
    """
    whole = dataclasses.replace(
        settings, granularity="batch", closed_statistics="frozen"
    )
    key = jax.random.key(seed)

    def draw(index):
        return sample_gates(jax.random.fold_in(key, index), whole, num_blocks)

    return np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(number, dtype=jnp.int32)))


def group_errors(probabilities: np.ndarray, labels: np.ndarray, size: int) -> list:
    """Return the errors in percent of ensembles that average their predictions.

    The M networks are split, in order, into floor(M / size) disjoint ensembles.

    Args:
        probabilities: predictions of the networks, f[M, N, K].
        labels: i[N], true classes.
        size: number of networks of an ensemble.
    """
    number = len(probabilities) // size
    groups = probabilities[: number * size].reshape(
        number, size, *probabilities.shape[1:]
    )
    predicted = groups.mean(axis=1, dtype=np.float64).argmax(axis=-1)  # (number, N)
    return [float(100 * error) for error in (predicted != labels).mean(axis=1)]
