# SPDX-License-Identifier: Apache-2.0
"""Augmentation against numpy, and independent of how a batch is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rn_jax.data.augment import augment, normalize, random_crop, random_flip

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def images():
    """64 images of 6x5x3, no pixel of which is zero or the same as another."""
    n = 64 * 6 * 5 * 3
    values = np.random.default_rng(0).permutation(n) + 1
    return values.reshape(64, 6, 5, 3).astype(np.float32)


def shifted(image, row, column, pad):
    """What a crop at (row, column) of the padded image is."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return padded[row : row + height, column : column + width]


def test_normalize_broadcasts_against_images():
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    for mean, std in [
        (np.float32([120, 110, 100]), np.float32([60, 50, 40])),
        (np.full((4, 4, 3), 99, np.float32), np.float32(64)),
    ]:
        expected = (pixels.astype(np.float64) - mean) / std
        found = normalize(pixels, mean, std)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        low = normalize(pixels, mean, std, dtype=jnp.bfloat16)
        assert low.dtype == jnp.bfloat16
        np.testing.assert_array_equal(low, found.astype(jnp.bfloat16))


@pytest.mark.parametrize("pad", [1, 2])
def test_random_crop_reaches_every_offset_alike_and_no_other(images, pad):
    draws, image = 2000, images[0]
    crops = jax.vmap(random_crop, (0, None, None))(
        jax.random.split(KEY, draws), image, pad
    )
    offsets = [(r, c) for r in range(2 * pad + 1) for c in range(2 * pad + 1)]
    counts = [
        np.all(crops == shifted(image, row, column, pad), axis=(1, 2, 3)).sum()
        for row, column in offsets
    ]
    assert sum(counts) == draws
    expected = draws / len(offsets)
    assert np.abs(np.array(counts) - expected).max() < 5 * np.sqrt(expected)


def test_random_flip_mirrors_about_half(images):
    draws, image = 2000, images[0]
    flips = jax.vmap(random_flip, (0, None))(jax.random.split(KEY, draws), image)
    mirrored = np.all(flips == image[:, ::-1], axis=(1, 2, 3))
    kept = np.all(flips == image, axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(draws)


def test_nothing_to_do_returns_the_input(images):
    assert augment(KEY, images, pad=0, flip=False) is images


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (2, False), (0, True)])
def test_augment_gives_crops_and_mirror_images_of_the_same_example(images, pad, flip):
    found = np.asarray(augment(KEY, images, pad=pad, flip=flip))
    assert found.shape == images.shape and found.dtype == images.dtype
    kinds = set()
    for image, result in zip(images, found, strict=True):
        choices = {
            (row, column, mirror): shifted(image, row, column, pad)[:, ::mirror]
            for row in range(2 * pad + 1)
            for column in range(2 * pad + 1)
            for mirror in ([1, -1] if flip else [1])
        }
        matching = [k for k, v in choices.items() if np.array_equal(v, result)]
        assert len(matching) == 1
        kinds.update(matching)
    # 64 examples with keys of their own: most choices occur, and both directions vary.
    assert len(kinds) > min(len(choices), 64) / 3
    if flip:
        assert {mirror for _, _, mirror in kinds} == {1, -1}


def test_crop_and_flip_are_independent_draws(images):
    """An example's offset does not tell whether it is mirrored."""
    many = np.broadcast_to(images[:1], (2000, *images.shape[1:]))
    found = np.asarray(augment(KEY, many, pad=1, flip=True))
    for row in range(3):
        for column in range(3):
            crop = shifted(images[0], row, column, 1)
            kept = np.all(found == crop, axis=(1, 2, 3)).sum()
            mirrored = np.all(found == crop[:, ::-1], axis=(1, 2, 3)).sum()
            assert kept + mirrored > 100
            assert abs(kept - mirrored) < 5 * np.sqrt(kept + mirrored)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_augment_does_not_depend_on_how_the_batch_is_cut(images, devices):
    whole = augment(KEY, images, pad=2, flip=True)
    size = len(images) // devices
    parts = [
        augment(KEY, images[i : i + size], pad=2, flip=True, first_index=i)
        for i in range(0, len(images), size)
    ]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)
    # Without its place in the whole batch, a part is augmented differently.
    lost = augment(KEY, images[size : 2 * size], pad=2, flip=True)
    assert not np.array_equal(lost, parts[1])


def test_augment_is_the_same_under_jit_and_differs_by_key(images):
    options = {"pad": 2, "flip": True}
    plain = augment(KEY, images, first_index=5, **options)
    jitted = jax.jit(functools.partial(augment, **options))
    np.testing.assert_array_equal(jitted(KEY, images, first_index=5), plain)
    other = jitted(jax.random.fold_in(KEY, 1), images, first_index=5)
    assert not np.array_equal(other, plain)
