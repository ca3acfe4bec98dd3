# SPDX-License-Identifier: Apache-2.0
"""Metrics against numpy, and the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rn_jax import metrics, train


def test_sums_are_those_of_numpy_and_leave_out_the_padding():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 2, 1, 0], np.int32)
    mask = np.array([True, True, True, True, False, False])
    sums = metrics.classification_sums(logits, labels, mask)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    losses = -np.log(probabilities[np.arange(6), labels])
    np.testing.assert_allclose(sums["loss"], losses[:4].sum(), rtol=1e-6)
    assert sums["correct"] == (logits.argmax(1) == labels)[:4].sum()
    assert sums["count"] == 4


def test_padding_that_is_not_finite_does_not_spoil_the_sum():
    logits = jnp.array([[1.0, 0.0], [jnp.nan, jnp.inf]])
    sums = metrics.classification_sums(
        logits, jnp.array([0, 0]), jnp.array([True, False])
    )
    assert np.isfinite(sums["loss"]) and sums["correct"] == 1


def test_means_divide_once():
    """A mean of batch means would give the short last batch too much weight."""
    batches = [{"loss": 8.0, "correct": 3.0, "count": 4.0}]
    batches.append({"loss": 1.0, "correct": 0.0, "count": 1.0})
    total = {name: sum(b[name] for b in batches) for name in batches[0]}
    assert metrics.means(total) == {"loss": 1.8, "error_percent": 40.0}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_64_bits_change_no_sum(same_in_64_bits, dtype):
    logits = np.random.default_rng(0).normal(size=(6, 3))
    labels, mask = np.arange(6, dtype=np.int32) % 3, np.arange(6) < 4

    def compute():
        low = jnp.asarray(logits, dtype)
        sums = metrics.classification_sums(low, labels, mask)
        return sums, train.log_mean_softmax(low.reshape(3, 2, 3))

    same_in_64_bits(compute)
    assert {leaf.dtype for leaf in jax.tree.leaves(compute())} == {jnp.dtype("float32")}


def test_loss_and_label_of_probabilities():
    """The cross-entropy with smoothed targets of Szegedy et al. 2016, section 7."""
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(size=(5, 3)))
    labels, mask = np.array([0, 1, 2, 1, 0]), np.array([1, 1, 1, 1, 0], bool)
    targets = np.float32(0.9 * np.eye(3)[labels] + 0.1 / 3)
    sums = metrics.classification_sums(logits, targets, mask)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(targets * log_probs).sum(axis=1)[:4].sum()
    assert float(sums["loss"]) == pytest.approx(expected, rel=1e-5)
    assert sums["correct"] == (logits.argmax(axis=1) == labels)[:4].sum()
