# SPDX-License-Identifier: Apache-2.0
"""The mean and standard deviation of images, against NumPy in float64."""

import numpy as np
import pytest

from rn_jax import InputError, data
from rn_jax.data import Examples


@pytest.fixture(scope="module")
def many():
    """More examples than one chunk of the sums, brighter on the left and in red."""
    rng = np.random.default_rng(0)
    bright = np.array([200, 120, 60]) * np.linspace(1, 0.3, 4)[:, None]
    images = rng.normal(bright, 30, (1500, 5, 4, 3)).clip(0, 255).astype(np.uint8)
    return Examples(images, np.zeros(1500, np.int32))


def test_channel_normalization(many):
    found = data.normalization(many, "channel")
    pixels = many.images.astype(np.float64)
    assert found.mean.dtype == found.std.dtype == np.float32
    np.testing.assert_allclose(found.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.std, pixels.std(axis=(0, 1, 2)), rtol=1e-6)


def test_mean_image_normalization(many):
    found = data.normalization(many, "mean_image")
    pixels = many.images.astype(np.float64)
    assert found.mean.shape == (5, 4, 3) and found.std.shape == ()
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-6)
    # The 2016 code takes the std of the raw pixels, not of what the mean image leaves.
    np.testing.assert_allclose(found.std, pixels.std(), rtol=1e-6)
    assert abs(found.std - (pixels - found.mean).std()) > 1


def test_a_constant_channel_is_not_divided_by_zero():
    found = data.normalization(Examples(*[np.full((4, 2, 2, 1), 7)] * 2), "channel")
    assert (found.mean, found.std) == (7, 1)


def test_unknown_normalization_names_both():
    with pytest.raises(InputError, match="'zca': known: channel, mean_image"):
        data.normalization(Examples(np.zeros((3, 1, 1, 1)), np.zeros(3)), "zca")


def test_imagenets_normalization_whatever_the_examples():
    """torchvision's constants for pixels in 0..1, converted to 0..255."""
    examples = Examples(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32))
    stats = data.normalization(examples, "imagenet")
    pixels = np.array([0.0, 128.0, 255.0])[:, None]
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose((pixels - stats.mean) / stats.std, expected, rtol=1e-5)
