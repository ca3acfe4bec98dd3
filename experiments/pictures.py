# SPDX-License-Identifier: Apache-2.0
"""Reading pictures of every format, depth and orientation."""

import sys
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rn_jax.errors import InputError


def read_picture(file: str, channels: int) -> np.ndarray:
    """Read a picture in any format of Pillow, and convert it to 8 bits per channel.

    - Only the first image of an animation or a file of several pages is read.
    - The orientation in the Exif data is applied; colour profiles are not.
    - Integers of more than 8 bits are scaled by their depth, so that the largest of
      that type is 255. Signed integers are scaled in the same way from 0.
    - Floating-point numbers from 0 to 1 are multiplied by 255; if any is above 1, all
      are taken as numbers from 0 to 255.
    - A transparent picture is composited onto white, and a line on stderr says so.

    Args:
        file: its path.
        channels: 1 for greyscale, 3 for RGB.

    Returns:
        uint8[H, W, channels].

    Raises:
        InputError: the file cannot be read, is not a picture, or is too large to be
            decoded safely; or it has numbers that these rules do not cover: negative,
            not finite, floating-point above 255, or integers of more than 8 bits of
            which none is above 255, which would all be black.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # From a path, Pillow would map a TIFF into memory and not rotate it.
            with open(file, "rb") as stream, Image.open(stream) as picture:
                tags = getattr(picture, "tag_v2", {})
                kind = picture.format
                upright = ImageOps.exif_transpose(picture)
                if _is_deep(upright.mode, tags):
                    upright = _shallow(file, upright, kind, tags)
                picture = _over_white(file, upright)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"There is no file {file}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{file} is too large: the limit is {Image.MAX_IMAGE_PIXELS:,} pixels."
        ) from error
    except Exception as error:  # whatever a damaged picture makes Pillow raise
        reason = "is not a picture"
        if isinstance(error, OSError) and not isinstance(error, UnidentifiedImageError):
            reason = f"cannot be read ({error.strerror or error})"
        raise InputError(f"{file} {reason}: use a PNG or JPEG.") from error
    if channels == 1:
        picture = picture.convert("L")
    return np.array(picture).reshape(picture.height, picture.width, channels)


_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2


def _is_signed(tags):
    return tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED


def _is_deep(mode, tags):
    """Return whether a picture has one channel, with numbers other than 0 to 255."""
    return mode[0] in "IF" or (mode == "L" and _is_signed(tags))


def _shallow(file, picture, kind, tags):
    """Convert such a picture to mode L, or LA if one of its values is transparent."""
    values = np.asarray(picture)
    transparent = np.zeros(values.shape, bool)
    if "transparency" in picture.info:
        transparent = values == picture.info["transparency"]
    if picture.mode == "F":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
            raise InputError(
                f"{file} has floating-point numbers that are negative, above 255 or "
                "not finite: scale them to the range from 0 to 1."
            )
        largest = 1 if values.max() <= 1 else 255
    else:
        bits = 32 if picture.mode == "I" and kind not in ("PNG", "PPM") else 16
        bits, signed = tags.get(_BITS, (bits,))[0], _is_signed(tags)
        if signed and bits == 8:
            values = values.view(np.int8)
        if not signed and bits == 32 and kind == "TIFF":
            values = values.view(np.uint32)
        largest = 2 ** (bits - signed) - 1
        if values.min() < 0:
            raise InputError(f"{file} has negative numbers: save it with 8 bits.")
        if bits > 8 and 0 < values.max() <= 255:
            raise InputError(
                f"{file} has integers of {bits} bits, but none is above 255: save it "
                f"with 8 bits, or scale them up to {largest}."
            )
    grey = np.rint(values * (255 / largest)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and picture.mode != "L":
        grey = 255 - grey  # Pillow inverts only 8 bits and fewer
    shallow = Image.fromarray(grey)
    if transparent.any():
        shallow.putalpha(Image.fromarray(np.uint8(255) * ~transparent))
    return shallow


def _over_white(file, picture):
    """Composite a picture onto white, in mode RGB."""
    if picture.mode in ("LAB", "La"):  # cannot be converted to RGBA directly
        picture = picture.convert("RGB" if picture.mode == "LAB" else "LA")
    picture = picture.convert("RGBA")
    if picture.getchannel("A").getextrema() != (255, 255):
        print(f"{file} is transparent: composited onto white.", file=sys.stderr)
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
