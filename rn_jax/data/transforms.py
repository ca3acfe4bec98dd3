# SPDX-License-Identifier: Apache-2.0
"""What happens to an ImageNet picture on the host: decoding, resizing, cropping.

Pure functions of uint8[H, W, 3] images in RGB; those that draw take a NumPy generator
first. OpenCV is imported when it is first needed (the extra `imagenet`). Results may be
views of their input.
"""

import math

import numpy as np

from rn_jax.errors import InputError

# Of a picture that is decoded: 400 MB. A photograph of 100 megapixels fits.
MOST_PIXELS = 2**27


def decode_jpeg(encoded: bytes) -> np.ndarray:
    """Decode a JPEG, also a greyscale or CMYK one, or a PNG, to uint8[H, W, 3].

    As Pillow's `convert("RGB")` and torchvision's loader: the orientation that a camera
    recorded is not applied, and transparency is dropped. ImageNet as it was published
    holds 22 CMYK files and one PNG.

    Raises:
        InputError: the bytes are no whole picture, or one of more than 2^27 pixels.
    """
    import cv2

    height, width = _size_in_header(encoded) or (0, 0)
    if height * width > MOST_PIXELS:
        raise InputError(
            f"A picture of {height}x{width} pixels is too large to be decoded: at most "
            f"{MOST_PIXELS:,} pixels are taken."
        )

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    data = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(data, flags) if height * width else None
    if image is None:
        raise InputError(
            f"{len(encoded)} bytes are no whole JPEG or PNG: cut off, or of another "
            "format."
        )
    return image


def _size_in_header(encoded: bytes) -> tuple[int, int] | None:
    """Return (height, width) as a JPEG or PNG says it; None where it does not."""
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = encoded[16:20], encoded[20:24]
        return int.from_bytes(height), int.from_bytes(width)
    if not encoded.startswith(b"\xff\xd8"):
        return None
    place = 2
    while (place := encoded.find(b"\xff", place)) >= 0:  # also over stray bytes
        marker, length = encoded[place + 1 : place + 2], encoded[place + 2 : place + 4]
        if marker in _FRAMES:
            height, width = (
                encoded[place + 5 : place + 7],
                encoded[place + 7 : place + 9],
            )
            return int.from_bytes(height), int.from_bytes(width)
        if marker in _ALONE:
            place += 1 if marker == b"\xff" else 2
        else:
            place += 2 + int.from_bytes(length)
    return None


# Markers of JPEG: frames, which have the size, and those without a length.
_FRAMES = {bytes([code]) for code in range(0xC0, 0xD0)} - {b"\xc4", b"\xc8", b"\xcc"}
_ALONE = {bytes([code]) for code in (0x00, 0x01, *range(0xD0, 0xDA), 0xFF)}


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize to uint8[height, width, 3] by linear interpolation.

    A side that shrinks is smoothed before, by `antialiasing_weights`: on photographs
    the result is within 2 of 255 of Pillow's BILINEAR in the mean. (OpenCV's INTER_AREA
    is further from it from a factor of 1.5 on, and takes as long as the decoding.)
    """
    import cv2

    if image.shape[:2] == (height, width):
        return image
    if height < image.shape[0] or width < image.shape[1]:
        image = cv2.sepFilter2D(
            image,
            ddepth=-1,
            kernelX=antialiasing_weights(image.shape[1] / width),
            kernelY=antialiasing_weights(image.shape[0] / height),
            borderType=cv2.BORDER_REPLICATE,
        )
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def antialiasing_weights(factor: float) -> np.ndarray:
    """Return the weights of neighbouring pixels, before linear interpolation.

    To shrink by `factor`, Pillow and torchvision average with a triangle whose variance
    is factor**2 / 6 square pixels; linear interpolation by itself has one of 1/6 in the
    mean. The weights have the difference: three of them as long as these can, which
    for a factor of 2 is the very triangle, then those of a Gaussian.

    Args:
        factor: old over new length; 1 or less for no smoothing.

    Returns:
        float64[n], n odd, with a sum of 1.
    """
    variance = max(factor**2 - 1, 0) / 6
    if variance == 0:
        return np.ones(1)
    if variance <= 0.5:
        return np.array([variance / 2, 1 - variance, variance / 2])
    reach = math.ceil(2.5 * math.sqrt(variance))
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * variance))
    return weights / weights.sum()


def resize_shorter(image: np.ndarray, size: int) -> np.ndarray:
    """Resize so that the shorter side is `size`, with the aspect kept.

    The longer side is rounded down to whole pixels, as in torchvision.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    return resize(image, size * height // shorter, size * width // shorter)


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Cut the size x size pixels in the middle.

    Where the middle lies between two pixels, the even offset is taken, as torchvision's
    rounding does.

    Raises:
        InputError: the image is smaller than that.
    """
    height, width = _require_size(image, size)
    return _window(image, round((height - size) / 2), round((width - size) / 2), size)


def random_crop(rng: np.random.Generator, image: np.ndarray, size: int) -> np.ndarray:
    """Cut size x size pixels at a uniformly random place.

    Raises:
        InputError: the image is smaller than that.
    """
    height, width = _require_size(image, size)
    top = int(rng.integers(height - size, endpoint=True))
    left = int(rng.integers(width - size, endpoint=True))
    return _window(image, top, left, size)


def scale_crop(
    rng: np.random.Generator, image: np.ndarray, *, low: int, high: int, size: int
) -> np.ndarray:
    """Resize the shorter side to a random length and cut a random size x size window.

    The length is uniform among the whole numbers low..high, both included (Simonyan and
    Zisserman 2015, section 3.1; He et al. 2015, section 3.4, with 256..480 and 224).

    Raises:
        InputError: `low` is smaller than `size`.
    """
    shorter = int(rng.integers(low, high, endpoint=True))
    return random_crop(rng, resize_shorter(image, shorter), size)


def area_window(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draw the window of `area_crop` in an image of height x width pixels.

    Its share of the image's area is uniform in `area`, its width over its height
    uniform in `aspect` on a logarithmic scale, and its place uniform (Szegedy et al.
    2015, section 6; the distribution is torchvision's `RandomResizedCrop`, while
    fb.resnet.torch draws the aspect on a linear scale and then inverts half of them).
    After ten windows that do not fit, it is the largest one in the middle whose aspect
    is in range.

    Returns:
        (top, left, height, width), in pixels.
    """
    low, high = aspect
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            top = int(rng.integers(height - h, endpoint=True))
            left = int(rng.integers(width - w, endpoint=True))
            return top, left, h, w
    h = min(height, round(width / low))
    w = min(width, round(height * high))
    return (height - h) // 2, (width - w) // 2, h, w


def area_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Cut a window of random area, aspect and place, and resize it to size x size.

    See `area_window` for `area`, `aspect` and the source.
    """
    top, left, height, width = area_window(
        rng, *image.shape[:2], area=area, aspect=aspect
    )
    return resize(image[top : top + height, left : left + width], size, size)


def flip(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Mirror left to right with probability one half."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def ten_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return uint8[10, size, size, 3]: corners and centre, then those of the mirror.

    The corners are in the order top left, top right, bottom left, bottom right
    (Krizhevsky et al. 2012, section 4.1; the order is torchvision's `TenCrop`).

    Raises:
        InputError: the image is smaller than size x size.
    """
    height, width = _require_size(image, size)
    bottom, right = height - size, width - size
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right))
    return np.stack(
        [
            crop
            for view in (image, image[:, ::-1])
            for crop in (
                *(_window(view, top, left, size) for top, left in corners),
                center_crop(view, size),
            )
        ]
    )


def dense_views(image: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Return the whole image and its mirror image at each length of the shorter side.

    For a network applied fully convolutionally (He et al. 2015, section 3.4, with
    224, 256, 384, 480 and 640).

    Returns:
        A list of 2 * len(sizes) images of several shapes; the mirror image of a size
        follows its image.
    """
    views = []
    for size in sizes:
        view = resize_shorter(image, size)
        views += [view, view[:, ::-1]]
    return views


def _window(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    return image[top : top + size, left : left + size]


def _require_size(image: np.ndarray, size: int) -> tuple[int, int]:
    """Return the height and width of an image from which size x size can be cut."""
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise InputError(
            f"An image of {height}x{width} pixels is too small for a crop of "
            f"{size}x{size}: resize its shorter side to at least {size} first."
        )
    return height, width
