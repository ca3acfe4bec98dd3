# SPDX-License-Identifier: Apache-2.0
"""Norms of the gradient by weights, against the formula in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from rn_jax.analysis import gradients
from rn_jax.models.preact import FullPreactivation
from rn_jax.models.resnet import BasicBlock, PlainLayer, ResNet

IMAGE = (8, 8, 3)


def normalise(pixels):
    return pixels.astype(jnp.float32) / 64 - 2


@pytest.mark.parametrize("block", [BasicBlock, FullPreactivation, PlainLayer])
def test_norm_of_the_classifier_by_hand(quick_compile, random_variables, block):
    model = ResNet((2,), num_classes=3, features=(4,), block=block)
    variables = random_variables(model, IMAGE)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, *IMAGE), dtype=np.uint8)
    labels = np.array([0, 1, 2, 2, 1, 0], np.int32)
    measure = gradients.make_weight_gradients(model=model, preprocess=normalise)
    gates = np.ones(2, np.float32)
    found = measure(variables, gates, {"image": pixels, "label": labels})
    assert any(name.startswith("stage1/block02/") for name in found)

    def loss(kernel):  # of the classifier
        params = {**variables["params"]}
        params["head"] = {**params["head"], "kernel": kernel}
        logits, _ = model.apply(
            {**variables, "params": params},
            normalise(pixels),
            train=True,
            gates=gates,
            mutable=["batch_stats"],
        )
        return logits

    kernel = variables["params"]["head"]["kernel"]
    logits = np.asarray(loss(kernel), np.float64)
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    by_logits = (chances - np.eye(3)[labels]) / len(labels)
    # The logits are linear in the kernel, so unit kernels return the features.
    zero = np.asarray(loss(jnp.zeros_like(kernel)), np.float64)
    features = []
    for row in range(len(kernel)):
        unit = jnp.zeros_like(kernel).at[row, 0].set(1)
        features.append((np.asarray(loss(unit), np.float64) - zero)[:, 0])
    expected = np.linalg.norm(np.array(features) @ by_logits)
    np.testing.assert_allclose(found["head"], expected, rtol=1e-4)
