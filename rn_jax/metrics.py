# SPDX-License-Identifier: Apache-2.0
"""Metrics as sums over examples and a count, divided once at the end.

Sums add up over batches, devices and epochs without bias, and a mask excludes the
padding of a last batch.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax


def classification_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Sum the metrics of one batch.

    Args:
        logits: f[B, num_classes].
        labels: i32[B], or probabilities of classes f32[B, num_classes], the highest
            of which counts as the label.
        mask: bool[B], False for padding.

    Returns:
        f32[] each: "loss" (cross-entropy in nats), "correct", "count".
    """
    logits = logits.astype(jnp.float32)
    if labels.ndim == 2:
        loss = optax.softmax_cross_entropy(logits, labels)  # (B,)
        labels = labels.argmax(axis=-1)  # (B,)
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)  # (B,)
    correct = logits.argmax(axis=-1).astype(labels.dtype) == labels
    return {
        "loss": jnp.where(mask, loss, 0).sum(),
        "correct": (correct & mask).sum(dtype=jnp.float32),
        "count": mask.sum(dtype=jnp.float32),
    }


def means(sums: Mapping[str, jax.Array]) -> dict[str, float]:
    """Divide sums by their count: mean loss in nats, error in percent."""
    count = float(sums["count"])
    return {
        "loss": float(sums["loss"]) / count,
        "error_percent": 100 * (1 - float(sums["correct"]) / count),
    }
