# SPDX-License-Identifier: Apache-2.0
"""Norm of the loss's gradient by each layer's weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rn_jax.models.network import Network
from rn_jax.models.trunk import unstack


def make_weight_gradients(
    *, model: Network, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable:
    """Make weight_gradients(variables, gates, batch) -> {layer: f32[]}, compiled once.

    It returns the Euclidean norm of the gradient of the mean cross-entropy in nats by
    every kernel, with names like "stage1/block02/conv1". BatchNorm uses the
    statistics of the mini-batch, as in training. `gates` are f32[L] and `batch` has
    "image" uint8[B, H, W, C] and "label" i32[B].

    Args:
        model: network, called with `train=True` and the gates.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
    """

    @jax.jit
    def weight_gradients(variables, gates, batch):
        rest = {name: v for name, v in variables.items() if name != "params"}

        def loss(params):
            logits: Any
            logits, _ = model.apply(
                {"params": params, **rest},
                preprocess(batch["image"]),
                train=True,
                gates=jnp.asarray(gates)[:, None],
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), batch["label"]
            ).mean()

        gradient = jax.grad(loss)(variables["params"])
        leaves = jax.tree_util.tree_leaves_with_path(unstack({"params": gradient}))
        return {
            "/".join(part.key for part in path[1:-1]): _norm(leaf)
            for path, leaf in leaves
            if path[-1].key == "kernel"
        }

    return weight_gradients


def _norm(leaf):
    largest = jnp.abs(leaf).max()  # squares of small gradients would underflow
    unit = leaf / jnp.where(largest > 0, largest, 1)
    return largest * jnp.linalg.norm(unit.ravel())
