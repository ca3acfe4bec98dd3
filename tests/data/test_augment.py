# SPDX-License-Identifier: Apache-2.0
"""Augmentation against NumPy, and independent of how a batch is split."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rn_jax import InputError, data
from rn_jax.data import NORMALIZATIONS, Examples
from rn_jax.data.augment import (
    augment,
    augment_color,
    color_jitter,
    contrast_normalize,
    normalize,
    normalizer,
    pca_noise,
    random_crop,
    random_flip,
)

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def images():
    """64 images of 6x5x3 with pixels that are all different and not zero."""
    n = 64 * 6 * 5 * 3
    values = np.random.default_rng(0).permutation(n) + 1
    return values.reshape(64, 6, 5, 3).astype(np.float32)


def shifted(image, row, column, pad):
    """Return the crop at (row, column) of the padded image."""
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


@pytest.mark.parametrize("shape", [(9, 14), (3, 4), (6, 5), (13, 2)])
def test_a_mean_image_of_another_size_is_resized_bilinearly(shape):
    rng = np.random.default_rng(0)
    mean = rng.uniform(0, 255, (6, 5, 3)).astype(np.float32)
    pixels = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    resized = mean
    for axis, side in enumerate(shape):
        # Centres of the pixels, in those of the mean; beyond its edge as at the edge.
        there = (np.arange(side) + 0.5) * mean.shape[axis] / side - 0.5
        resized = np.apply_along_axis(
            lambda line, at=there: np.interp(at, np.arange(len(line)), line),
            axis,
            resized,
        )
    found = normalize(pixels, mean, np.float32(2))
    np.testing.assert_allclose(found, (pixels - resized) / 2, atol=1e-3)


@pytest.mark.parametrize("pad", [1, 2])
def test_random_crop_reaches_every_offset_alike_and_no_other(images, pad):
    draws, image = 2000, images[0]
    crops = jax.vmap(random_crop, (0, None, None))(
        jax.random.split(KEY, draws), image, pad
    )
    offsets = [(r, c) for r in range(2 * pad + 1) for c in range(2 * pad + 1)]
    counts = [
        np.all(crops == shifted(image, row, column, pad)[None], axis=(1, 2, 3)).sum()
        for row, column in offsets
    ]
    assert sum(counts) == draws
    expected = draws / len(offsets)
    assert np.abs(np.array(counts) - expected).max() < 5 * np.sqrt(expected)


def test_random_flip_mirrors_about_half(images):
    draws, image = 2000, images[0]
    flips = jax.vmap(random_flip, (0, None))(jax.random.split(KEY, draws), image)
    mirrored = np.all(flips == image[None, :, ::-1], axis=(1, 2, 3))
    kept = np.all(flips == image[None], axis=(1, 2, 3))
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
    """An example's offset does not determine whether it is mirrored."""
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


# Colours


def test_normalizers_by_name():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    pixels[2] = 77  # one colour
    examples = Examples(pixels, np.zeros(6, np.int32))
    wide = pixels.astype(np.float64)
    each = wide.reshape(6, -1)
    std = np.where(each.std(axis=1) > 0, each.std(axis=1), 1)
    mean = 255 * np.array([0.485, 0.456, 0.406])
    expected = {
        "channel": (wide - wide.mean((0, 1, 2))) / wide.std((0, 1, 2)),
        "mean_image": (wide - wide.mean(0)) / wide.std(),
        "unit": wide / 255,
        "contrast": ((each - each.mean(1, keepdims=True)) / std[:, None]).reshape(
            wide.shape
        ),
        "imagenet": (wide - mean) / (255 * np.array([0.229, 0.224, 0.225])),
        "imagenet_mean": wide - mean,
    }
    assert set(expected) == set(NORMALIZATIONS)
    for kind, values in expected.items():
        found = normalizer(examples, kind)(pixels)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-4, err_msg=kind)
    assert np.array_equal(contrast_normalize(pixels)[2], np.zeros((4, 5, 3)))
    with pytest.raises(InputError, match="Unknown normalization 'zca'"):
        normalizer(examples, "zca")


# fb.resnet.torch, datasets/imagenet.lua: `pca`, on a scale from 0 to 1.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)


def test_pca_noise_is_alpha_times_eigenvalue_times_eigenvector():
    """As `Lighting` of fb.resnet.torch computes it, for the same normal numbers."""
    image = np.random.default_rng(0).uniform(0, 255, (3, 2, 3)).astype(np.float32)
    for key in jax.random.split(KEY, 5):
        alpha = 0.1 * np.asarray(jax.random.normal(key, (3,)), np.float64)
        rgb = (EIGENVECTORS * alpha * EIGENVALUES).sum(axis=1)
        expected = 255 * (image / 255 + rgb)
        np.testing.assert_allclose(pca_noise(key, image, 0.1), expected, rtol=1e-5)


def test_the_constants_of_pca_noise_are_those_of_imagenets_covariance():
    """Eigenvalues, and not their roots: the channels then vary as ImageNet's do.

    0.2806, 0.2736 and 0.2877 are measured over all pixels of all training images
    (pytorch/vision#1439); with the squares of the constants it would be 0.12 to 0.13.
    """
    np.testing.assert_allclose(EIGENVECTORS @ EIGENVECTORS.T, np.eye(3), atol=2e-3)
    covariance = EIGENVECTORS @ np.diag(EIGENVALUES) @ EIGENVECTORS.T
    std = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(std, [0.2806, 0.2736, 0.2877], rtol=0.02)


def test_pca_noise_has_the_std_of_the_paper_along_each_axis():
    image = jnp.full((3, 2, 3), 100.0)
    keys = jax.random.split(KEY, 4000)
    moved = jax.vmap(pca_noise, (0, None, None))(keys, image, 0.1)
    shift = np.asarray(moved - image[None])
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1, :1], shift.shape))
    along = shift[:, 0, 0] @ EIGENVECTORS
    np.testing.assert_allclose(along.std(axis=0), [5.5, 0.48, 0.115], rtol=0.05)
    np.testing.assert_allclose(along.mean(axis=0), 0, atol=0.3)


def test_color_jitter_is_torchvisions_in_the_same_order(torchvision):
    import torch
    from torchvision.transforms import functional

    adjust = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    rng = np.random.default_rng(0)
    image = rng.uniform(100, 150, (5, 4, 3)).astype(np.float32)  # nothing is cut off
    orders = set()
    for seed in range(12):
        key = jax.random.key(seed)
        order_key, weight_key = jax.random.split(key)
        order = jax.random.permutation(order_key, 3).tolist()
        weights = jax.random.uniform(weight_key, (3,), minval=0.8, maxval=1.2)
        expected = torch.tensor(image / 255).permute(2, 0, 1)
        for choice in order:
            expected = adjust[choice](expected, float(weights[choice]))
        found = jax.jit(color_jitter, static_argnums=2)(key, image, 0.2)
        expected = 255 * expected.permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3)  # of grey's 0.2989
        orders.add(tuple(order))
    assert len(orders) > 3


def test_colours_do_not_depend_on_how_the_batch_is_cut():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    change = functools.partial(augment_color, jitter=0.4, pca_std=0.1)
    whole = change(KEY, pixels)
    assert whole.dtype == jnp.float32 and np.abs(np.asarray(whole) - pixels).max() > 5
    parts = [change(KEY, pixels[i : i + 3], first_index=i) for i in (0, 3)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(
        augment_color(KEY, pixels, jitter=0, pca_std=0), pixels.astype(np.float32)
    )


@pytest.mark.slow
def test_64_bits_change_no_image(same_in_64_bits):
    """The same crops, mirror images and colours are drawn, in the same dtype."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)

    def compute():
        colours = augment_color(KEY, pixels, jitter=0.4, pca_std=0.1, first_index=3)
        low = normalize(pixels, 120.0, np.float64([60, 50, 40]), dtype=jnp.bfloat16)
        return {
            "colours": colours,
            "contrast": contrast_normalize(pixels),
            "crops": augment(KEY, colours, pad=2, flip=True, first_index=jnp.int32(3)),
            "low": augment(KEY, low, pad=2, flip=True),
        }

    same_in_64_bits(compute)


def mixed(devices, mixup_alpha, cutmix_alpha, probability=1.0, seed=0):
    """Images and targets of 8 examples, mixed on this many devices."""
    rng = np.random.default_rng(0)
    images, targets = rng.normal(size=(8, 6, 4, 3)), np.eye(8)
    images, targets = np.float32(images), np.float32(targets)
    mix = partial(
        data.mix,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        probability=probability,
    )
    key = jax.random.key(seed)
    if devices == 1:
        return (images, targets), mix(key, images, targets)
    rows = [a.reshape(devices, 8 // devices, *a.shape[1:]) for a in (images, targets)]
    over = jax.pmap(
        lambda *rows: mix(key, *rows, "d"), "d", devices=jax.devices()[:devices]
    )
    found = over(*rows)
    return (images, targets), [np.reshape(a, (8, *a.shape[2:])) for a in found]


@pytest.mark.parametrize("alphas", [(1.0, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_images_are_mixed_as_their_targets_are_on_any_number_of_devices(alphas):
    """Zhang et al. 2018, equation 1; Yun et al. 2019, equation 1."""
    (images, targets), (ours, probabilities) = mixed(1, *alphas)
    share = np.float64(probabilities[0, 0])
    assert 0 < share < 1
    expected = share * targets + (1 - share) * targets[::-1]
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    if alphas[0]:
        expected = share * images + (1 - share) * images[::-1]
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    else:
        own = np.isclose(ours, images, atol=1e-6).all(axis=(0, 3))  # (H, W)
        other = np.isclose(ours, images[::-1], atol=1e-6).all(axis=(0, 3))
        assert (own ^ other).all()
        assert own.mean() == pytest.approx(share)
        rows, columns = other.any(axis=1), other.any(axis=0)
        np.testing.assert_array_equal(other, rows[:, None] & columns)  # a box
    for a, b in zip(mixed(4, *alphas)[1], (ours, probabilities), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_batches_that_are_not_mixed_are_unchanged():
    before, after = mixed(1, 1.0, 1.0, probability=0.0)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_each_batch_has_mixup_cutmix_or_neither_with_its_probability():
    """Either in half of the mixed batches: with 0.6, in 0.3 of all, and none in 0.4."""
    batches, side = 4000, 16
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, side, side, 1)).astype("float32")
    mix = partial(data.mix, mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.6)

    @jax.jit
    @jax.vmap
    def taken(key):  # the share of the other image, at each pixel of the first
        mixed, _ = mix(key, images, np.eye(2, dtype="float32"))
        return ((mixed - images) / (images[::-1] - images))[0].ravel()

    shares = np.asarray(taken(jax.random.split(jax.random.key(0), batches)))
    whole = np.minimum(abs(shares), abs(1 - shares)).max(axis=1) < 1e-3
    neither = abs(shares).max(axis=1) < 1e-3
    found = {"mixup": ~whole, "cutmix": whole & ~neither, "neither": neither}
    # A box of less than two pixels a side is empty: lambda is above 1 - (2 / side)^2.
    empty = 0.3 * (2 / side) ** 2
    expected = {"mixup": 0.3, "cutmix": 0.3 - empty, "neither": 0.4 + empty}
    for name, share in expected.items():
        spread = (share * (1 - share) / batches) ** 0.5
        assert found[name].mean() == pytest.approx(share, abs=4 * spread), name
