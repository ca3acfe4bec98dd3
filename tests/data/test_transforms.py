# SPDX-License-Identifier: Apache-2.0
"""Host transforms against Pillow and torchvision, and against their definitions."""

import io
import math

import generated
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from rn_jax.data import transforms
from rn_jax.errors import InputError


@pytest.fixture(scope="module")
def photograph():
    """scikit-learn's temple, uint8[427, 640, 3]."""
    return load_sample_images().images[0]


@pytest.fixture(scope="module")
def places():
    """uint8[60, 80, 3], whose pixels encode their row and column."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 0], image[..., 1] = np.indices((60, 80))
    return image


def difference(found, expected):
    assert found.shape == expected.shape and found.dtype == np.uint8
    return np.abs(found.astype(np.int32) - expected.astype(np.int32))


# Decoding


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_decoded_as_by_pillow(photograph, mode):
    encoded = generated.encode(photograph, mode=mode)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    # Both use libjpeg-turbo; they differ in the rounding from CMYK to RGB alone.
    found = transforms.decode_jpeg(encoded)
    assert difference(found, expected).max() <= (mode == "CMYK")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_png_is_decoded_too(photograph, mode):
    encoded = generated.encode(photograph, "PNG", mode)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(transforms.decode_jpeg(encoded), expected)


def test_orientation_of_the_camera_is_left_alone(photograph):
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    Image.fromarray(photograph).save(stream, "JPEG", exif=exif)
    assert transforms.decode_jpeg(stream.getvalue()).shape == photograph.shape


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_off_picture_is_refused(photograph, file_format, share):
    encoded = generated.encode(photograph, file_format)
    with pytest.raises(InputError, match="not a complete JPEG or PNG"):
        transforms.decode_jpeg(encoded[: int(share * len(encoded))])


def test_other_bytes_are_refused():
    with pytest.raises(InputError, match="13 bytes are not a complete JPEG or PNG"):
        transforms.decode_jpeg(b"GIF89a,really")


# Resizing


@pytest.mark.parametrize("factor", [0.5, 1, 1.01, 1.5, 1.99, 2, 2.01, 4, 9])
def test_smoothing_makes_up_the_variance_of_a_triangle(factor):
    weights = transforms.antialiasing_weights(factor)
    reach = len(weights) // 2
    np.testing.assert_allclose(weights.sum(), 1)
    np.testing.assert_array_equal(weights, weights[::-1])
    variance = (weights * np.arange(-reach, reach + 1) ** 2).sum()
    # A Gaussian that ends at 2.5 standard deviations lacks some of it.
    expected = max(factor**2 - 1, 0) / 6
    np.testing.assert_allclose(variance, expected, rtol=1e-9 if factor <= 2 else 0.1)


def test_shrinking_by_two_is_pillows_triangle(photograph):
    found = transforms.resize(photograph[:426], 213, 320)
    image = Image.fromarray(photograph[:426])
    expected = np.asarray(image.resize((320, 213), Image.BILINEAR))
    # Ours is rounded once more, between the two steps; borders are smoothed otherwise.
    assert difference(found, expected)[1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize("size", [400, 300, 224, 160, 100, 50])
def test_shrinking_is_near_pillows_antialiased_one(photograph, size):
    """Without antialiasing the difference is several times as large."""
    found = transforms.resize_shorter(photograph, size)
    height, width = found.shape[:2]
    image = Image.fromarray(photograph)
    expected = np.asarray(image.resize((width, height), Image.BILINEAR))
    aliased = np.asarray(image.resize((width, height), Image.NEAREST))
    assert difference(found, expected).mean() < 2
    assert difference(found, expected).mean() < difference(aliased, expected).mean() / 4


def test_growing_is_pillows_linear_interpolation(photograph):
    found = transforms.resize(photograph, 600, 900)
    expected = Image.fromarray(photograph).resize((900, 600), Image.BILINEAR)
    # Both in fixed point, with weights of different precision.
    assert difference(found, np.asarray(expected)).max() <= 1


def test_one_side_shrinks_while_the_other_grows(photograph):
    """Each side by its own rule: along columns of one colour nothing is smoothed."""
    columns = np.repeat(photograph[:1], 50, axis=0)
    found = transforms.resize(columns, 70, 320)
    expected = transforms.resize(columns, 50, 320)[:1]
    assert difference(found, np.repeat(expected, 70, axis=0)).max() <= 1  # rounding


def test_sizes_of_the_shorter_side_are_torchvisions(torchvision):
    from torchvision.transforms import functional

    for height, width in [(375, 500), (500, 375), (7, 100), (333, 500), (256, 256)]:
        image = np.zeros((height, width, 3), np.uint8)
        for size in (5, 224, 256, 480):
            expected = functional.resize(Image.fromarray(image), size).size
            assert transforms.resize_shorter(image, size).shape[1::-1] == expected


def test_resizing_to_the_same_size_changes_nothing(photograph):
    assert transforms.resize_shorter(photograph, 427) is photograph


# Crops


@pytest.mark.parametrize("shape", [(60, 80), (61, 80), (61, 83), (32, 32), (33, 35)])
def test_centre_and_ten_crops_are_torchvisions(torchvision, photograph, shape):
    from torchvision.transforms import functional

    image = photograph[: shape[0], : shape[1]]
    expected = functional.center_crop(Image.fromarray(image), 32)
    np.testing.assert_array_equal(transforms.center_crop(image, 32), expected)
    expected = functional.ten_crop(Image.fromarray(image), 32)
    found = transforms.ten_crop(image, 32)
    assert found.shape == (10, 32, 32, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack([np.asarray(c) for c in expected]))


def test_the_crop_of_320_is_the_middle_of_the_resized_image(photograph):
    resized = transforms.resize_shorter(photograph, 320)
    assert resized.shape == (320, 479, 3)
    found = transforms.center_crop(resized, 320)
    np.testing.assert_array_equal(found, resized[:, 80:400])


@pytest.mark.parametrize(
    "crop",
    [
        transforms.center_crop,
        transforms.ten_crop,
        lambda image, size: transforms.random_crop(
            np.random.default_rng(0), image, size
        ),
    ],
)
def test_a_crop_larger_than_the_image_is_refused(places, crop):
    with pytest.raises(InputError, match=r"60x80 pixels is too small .* 61x61"):
        crop(places, 61)


def test_random_crop_reaches_every_place_alike(places):
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 23))
    for _ in range(7000):
        crop = transforms.random_crop(rng, places, 58)
        assert crop.shape == (58, 58, 3)
        counts[tuple(crop[0, 0, :2])] += 1
    expected = 7000 / counts.size
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


def test_scale_crop_draws_every_length_alike_and_a_place_in_it(places):
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    lengths = []
    for _ in range(2000):
        found = transforms.scale_crop(rng, places, low=30, high=39, size=24)
        lengths.append(int(again.integers(30, 40)))
        resized = transforms.resize_shorter(places, lengths[-1])
        np.testing.assert_array_equal(found, transforms.random_crop(again, resized, 24))
    counts = np.bincount(lengths)[30:]
    assert len(counts) == 10
    assert np.abs(counts - 200).max() < 5 * math.sqrt(200)


def test_flip_mirrors_about_half(places):
    rng, draws = np.random.default_rng(0), 2000
    mirrored = 0
    for _ in range(draws):
        found = transforms.flip(rng, places)
        if np.array_equal(found, places[:, ::-1]):
            mirrored += 1
        else:
            np.testing.assert_array_equal(found, places)
    assert abs(mirrored - draws / 2) < 5 * math.sqrt(draws / 4)


def test_dense_views_are_the_image_and_its_mirror_at_each_size(photograph):
    views = transforms.dense_views(photograph, (224, 480))
    assert [view.shape for view in views] == [(224, 335, 3)] * 2 + [(480, 719, 3)] * 2
    for view, mirror in (views[:2], views[2:]):
        np.testing.assert_array_equal(view[:, ::-1], mirror)


# Crops of random area and aspect


def windows(height, width, draws=4000, **ranges):
    rng = np.random.default_rng(0)
    drawn = (transforms.area_window(rng, height, width, **ranges) for _ in range(draws))
    return np.array(list(drawn)).T


def distance(a, b):
    """Return the Kolmogorov-Smirnov distance of two samples."""
    points = np.concatenate([a, b])
    above = [np.searchsorted(np.sort(s), points, side="right") / len(s) for s in (a, b)]
    return np.abs(above[0] - above[1]).max()


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (100, 480)])
def test_windows_are_distributed_as_torchvisions(torchvision, shape):
    import torch
    from torchvision.transforms import RandomResizedCrop

    height, width = shape
    draws = 4000
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    theirs = np.array(
        [
            RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            for _ in range(draws)
        ]
    ).T
    ours = windows(height, width, draws)
    bound = 1.95 * math.sqrt(2 / draws)  # passed by one in a thousand of equal ones
    for found, expected in zip(ours, theirs, strict=True):
        assert distance(found, expected) < bound
    assert distance(ours[2] * ours[3], theirs[2] * theirs[3]) < bound
    assert distance(ours[3] / ours[2], theirs[3] / theirs[2]) < bound


def test_windows_keep_to_their_bounds():
    height, width = 375, 500
    top, left, h, w = windows(height, width)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    share = h * w / (height * width)
    # Sides are rounded to whole pixels: by half a pixel each at most.
    slack = (h + w) / (height * width)
    assert (share >= 0.08 - slack).all() and (share <= 1 + slack).all()
    assert np.abs(np.log(w / h)).max() < math.log(4 / 3) + 1 / h.min()
    # A square window of a square image always fits: its area is uniform.
    _, _, h, w = windows(1000, 1000, area=(0.25, 0.75), aspect=(1, 1))
    assert distance(h * w / 1e6, np.linspace(0.25, 0.75, 4001)) < 1.95 / math.sqrt(4000)


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((100, 1000), (0, 433, 100, 133)),  # cut to an aspect of 4/3
        ((1000, 90), (440, 0, 120, 90)),  # to 3/4
        ((100, 110), (0, 0, 100, 110)),  # the whole image
    ],
)
def test_when_nothing_fits_the_middle_is_taken(torchvision, shape, window):
    import torch
    from torchvision.transforms import RandomResizedCrop

    # An area above the whole image's never fits.
    ranges = {"area": (2.0, 3.0), "aspect": (3 / 4, 4 / 3)}
    rng = np.random.default_rng(0)
    found = transforms.area_window(rng, *shape, **ranges)
    theirs = RandomResizedCrop.get_params(
        torch.empty(3, *shape), [2.0, 3.0], [3 / 4, 4 / 3]
    )
    assert found == window == tuple(theirs)


def test_area_crop_resizes_its_window(photograph):
    found = transforms.area_crop(np.random.default_rng(3), photograph, size=64)
    top, left, h, w = transforms.area_window(np.random.default_rng(3), 427, 640)
    window = Image.fromarray(photograph[top : top + h, left : left + w])
    expected = np.asarray(window.resize((64, 64), Image.BILINEAR))
    assert difference(found, expected).mean() < 2.5
