# SPDX-License-Identifier: Apache-2.0
"""Decoding, resizing and cropping of ImageNet's images on the host.

Pure functions of uint8[H, W, 3] images in RGB; random ones take a NumPy generator
first. OpenCV (of the extra `imagenet`) is imported when it is first needed. Results may
be views of their input.
"""

import math

import numpy as np

from rn_jax.errors import InputError

# 400 MB when decoded. A photograph of 100 megapixels fits.
MOST_PIXELS = 2**27


def decode_jpeg(encoded: bytes) -> np.ndarray:
    """Decode a JPEG, also a greyscale or CMYK one, or a PNG, to uint8[H, W, 3].

    As in Pillow's `convert("RGB")` and torchvision's loader, the orientation that a
    camera recorded is not applied, and transparency is dropped. The published ImageNet
    contains 22 CMYK files and one PNG.

    Raises:
        InputError: the bytes are not a complete JPEG or PNG, or it has more than 2^27
            pixels.
    """
    import cv2

    height, width = _size_in_header(encoded) or (0, 0)
    if height * width > MOST_PIXELS:
        raise InputError(
            f"An image of {height}x{width} pixels is too large to be decoded: at most "
            f"{MOST_PIXELS:,} pixels are allowed."
        )

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    data = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(data, flags) if height * width else None
    if image is None:
        raise InputError(
            f"{len(encoded)} bytes are not a complete JPEG or PNG: truncated, or in "
            "another format."
        )
    return image


def _size_in_header(encoded: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the header of a JPEG or PNG, or None."""
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = encoded[16:20], encoded[20:24]
        return int.from_bytes(height), int.from_bytes(width)
    if not encoded.startswith(b"\xff\xd8"):
        return None
    place = 2
    while (place := encoded.find(b"\xff", place)) >= 0:  # skips stray bytes
        marker, length = encoded[place + 1 : place + 2], encoded[place + 2 : place + 4]
        if marker in _FRAMES:
            size = encoded[place + 5 : place + 9]
            return int.from_bytes(size[:2]), int.from_bytes(size[2:])
        if marker in _WITHOUT_LENGTH:
            place += 1 if marker == b"\xff" else 2
        else:
            place += 2 + int.from_bytes(length)
    return None


# Markers of JPEG: frames, which contain the size, and those without a length.
_FRAMES = {bytes([code]) for code in range(0xC0, 0xD0)} - {b"\xc4", b"\xc8", b"\xcc"}
_WITHOUT_LENGTH = {bytes([code]) for code in (0x00, 0x01, *range(0xD0, 0xDA), 0xFF)}


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize to uint8[height, width, 3] by linear interpolation.

    Before a side shrinks, it is smoothed with `antialiasing_weights`: on photographs
    the result differs from Pillow's BILINEAR by less than 2 of 255 on average.
    (OpenCV's INTER_AREA differs more from a factor of 1.5 on, and takes as long as
    decoding.)
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
    """Return the weights that smooth neighbouring pixels before linear interpolation.

    To shrink by `factor`, Pillow and torchvision average with a triangle whose variance
    is factor**2 / 6 square pixels; linear interpolation alone has a variance of 1/6 on
    average. The weights supply the difference: three weights while that suffices (for a
    factor of 2 they are exactly the triangle), otherwise those of a Gaussian.

    Args:
        factor: old length divided by new length; 1 or less for no smoothing.

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
    """Resize so that the shorter side is `size` pixels, and keep the aspect ratio.

    The longer side is rounded down, as in torchvision.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    return resize(image, size * height // shorter, size * width // shorter)


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Crop the central size x size pixels.

    If the centre lies between two pixels, the offset is even, as in torchvision.

    Raises:
        InputError: the image is smaller.
    """
    height, width = _require_size(image, size)
    return _window(image, round((height - size) / 2), round((width - size) / 2), size)


def random_crop(rng: np.random.Generator, image: np.ndarray, size: int) -> np.ndarray:
    """Crop size x size pixels at a uniformly random position.

    Raises:
        InputError: the image is smaller.
    """
    height, width = _require_size(image, size)
    top = int(rng.integers(height - size, endpoint=True))
    left = int(rng.integers(width - size, endpoint=True))
    return _window(image, top, left, size)


def scale_crop(
    rng: np.random.Generator, image: np.ndarray, *, low: int, high: int, size: int
) -> np.ndarray:
    """Resize the shorter side to a random length and crop size x size pixels randomly.

    The length is a uniform integer in low..high, inclusive (Simonyan and Zisserman
    2015, section 3.1; He et al. 2015, section 3.4, with 256..480 and 224).

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

    Its share of the image's area is uniform in `area`, its width divided by its height
    uniform in `aspect` on a logarithmic scale, and its position uniform (Szegedy et al.
    2015, section 6; the distribution is that of torchvision's `RandomResizedCrop`,
    while fb.resnet.torch draws the aspect on a linear scale and then inverts half of
    them). After ten draws that do not fit, the largest central window whose aspect is
    in range is used.

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
    """Crop a window of random area, aspect and position, and resize it to size x size.

    See `area_window` for `area`, `aspect` and the source.
    """
    top, left, height, width = area_window(
        rng, *image.shape[:2], area=area, aspect=aspect
    )
    return resize(image[top : top + height, left : left + width], size, size)


def flip(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Mirror left to right with probability 0.5."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def ten_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return uint8[10, size, size, 3]: corners and centre, also of the mirrored image.

    The order is top left, top right, bottom left, bottom right, centre, as in
    torchvision's `TenCrop` (Krizhevsky et al. 2012, section 4.1).

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


def dense_views(
    image: np.ndarray, sizes: tuple[int, ...], *, multiple: int = 1
) -> list[np.ndarray]:
    """Return the whole image and its mirror image at each length of the shorter side.

    They are for a network applied fully convolutionally (He et al. 2015, section 3.4,
    with 224, 256, 384, 480 and 640).

    Args:
        image: uint8[H, W, 3].
        sizes: lengths of the shorter side, in pixels, before cropping.
        multiple: crop each side centrally to a multiple of this number of pixels, so
            that a network is compiled for fewer shapes.

    Returns:
        A list of 2 * len(sizes) images of different shapes; each mirror image follows
        its image.
    """
    views = []
    for size in sizes:
        view = resize_shorter(image, size)
        height, width = (side // multiple * multiple for side in view.shape[:2])
        top, left = (view.shape[0] - height) // 2, (view.shape[1] - width) // 2
        mirrored = view[:, ::-1]
        views += [v[top : top + height, left : left + width] for v in (view, mirrored)]
    return views


def train_view(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    crop: str,
    scales: tuple[int, int],
    size: int,
    mirrored: bool,
) -> np.ndarray:
    """Return a random training crop, uint8[size, size, 3], mirrored half of the time.

    Args:
        rng: generator of all draws.
        image: uint8[H, W, 3].
        crop: "scale" for `scale_crop`, "area" for `area_crop`.
        scales: lowest and highest length of the shorter side for "scale", in pixels.
        size: side of the crop, in pixels.
        mirrored: False to mirror no image.
    """
    if crop == "scale":
        low, high = scales
        cut = scale_crop(rng, image, low=low, high=high, size=size)
    else:
        cut = area_crop(rng, image, size=size)
    return flip(rng, cut) if mirrored else cut


def eval_view(image: np.ndarray, *, crops: str, resize: int, size: int) -> np.ndarray:
    """Return the central crop, uint8[size, size, 3], or ten, uint8[10, size, size, 3].

    Args:
        image: uint8[H, W, 3].
        crops: "center" or "ten", see `center_crop` and `ten_crop`.
        resize: length of the shorter side before cropping, in pixels.
        size: side of a crop, in pixels.
    """
    resized = resize_shorter(image, resize)
    return ten_crop(resized, size) if crops == "ten" else center_crop(resized, size)


def _window(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    return image[top : top + size, left : left + size]


def _require_size(image: np.ndarray, size: int) -> tuple[int, int]:
    """Return the height and width of an image, which must be at least size x size."""
    height, width = image.shape[:2]
    if min(height, width) < size:
        raise InputError(
            f"An image of {height}x{width} pixels is too small for a crop of "
            f"{size}x{size}: resize its shorter side to at least {size} first."
        )
    return height, width
