# SPDX-License-Identifier: Apache-2.0
"""Pictures of every kind, read as 8 bits per channel."""

import io
import struct
import warnings
from zlib import compress, crc32

import numpy as np
import PIL
import pytest
from PIL import Image

from experiments.pictures import read_picture
from rn_jax import InputError

DIGIT = np.random.default_rng(0).integers(2, 254, (8, 6)).astype(np.uint8)
DIGIT[0, :2] = 0, 255
INK = 255 - DIGIT  # of a digit that is drawn in the alpha channel
WIDE = DIGIT.astype(np.int64)


def tiff(numbers, photometric=1, order="<"):
    """The bytes of a TIFF of one channel, of whatever type the numbers are."""
    kind = {"u": 1, "i": 2, "f": 3}[numbers.dtype.kind]
    pixels = numbers.astype(numbers.dtype.newbyteorder(order)).tobytes()
    height, width = numbers.shape
    short = {258: 8 * numbers.itemsize, 259: 1, 262: photometric, 277: 1, 339: kind}
    long = {256: width, 257: height, 273: 8, 278: height, 279: len(pixels)}
    entries = b""
    for tag in sorted({**short, **long}):
        if tag in short:
            entries += struct.pack(order + "HHIHH", tag, 3, 1, short[tag], 0)
        else:
            entries += struct.pack(order + "HHII", tag, 4, 1, long[tag])
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
        order + "I", 8 + len(pixels)
    )
    count = struct.pack(order + "H", len(short) + len(long))
    return head + pixels + count + entries + bytes(4)


def png16(values, color, transparent=b""):
    """The bytes of a PNG with 16 bits per channel."""

    def chunk(name, body):
        size, crc = struct.pack(">I", len(body)), struct.pack(">I", crc32(name + body))
        return size + name + body + crc

    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", head), (b"IDAT", compress(rows)), (b"IEND", b"")]
    if transparent:
        parts.insert(1, (b"tRNS", transparent))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pgm(largest):
    rows = np.rint(WIDE * largest / 255).astype(int)
    return f"P2 6 8 {largest}\n{' '.join(map(str, rows.ravel()))}\n".encode()


def layers(*channels):
    return np.stack([np.uint16(257) * channel for channel in channels], axis=-1)


BLACK = np.zeros_like(DIGIT)
FILES = {
    "16 bits": png16(layers(DIGIT), 0),
    "16 bits in colour": png16(layers(DIGIT, DIGIT, DIGIT), 2),
    "16 bits with alpha": png16(layers(BLACK, INK), 4),
    "16 bits in colour with alpha": png16(layers(BLACK, BLACK, BLACK, INK), 6),
    "a transparent value": png16(layers(np.where(DIGIT == 255, 1, DIGIT)), 0, b"\1\1"),
    "PGM of 65535": pgm(65535),
    "PGM of 1000": pgm(1000),
    "PGM of 255": pgm(255),
    **{
        f"{name} {order}": tiff(numbers, order=order)
        for order in "<>"
        for name, numbers in {
            "uint16": (257 * WIDE).astype("u2"),
            "int16": np.rint(WIDE * 32767 / 255).astype("i2"),
            "int32": np.rint(WIDE * (2**31 - 1) / 255).astype("i4"),
            "float32 to 1": (WIDE / 255).astype("f4"),
            "float32 to 255": WIDE.astype("f4"),
        }.items()
    },
    "uint32": tiff((0x01010101 * WIDE).astype("u4")),
    "uint8, white is 0": tiff(INK, 0),
    "uint16, white is 0": tiff(np.uint16(257) * INK, 0),
    "float32, white is 0": tiff((INK / 255).astype("f4"), 0, ">"),
}


needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13,
    reason="Pillow 10.4 to 12.0 cannot read TIFFs in YCbCr",
)


@pytest.mark.parametrize("name", FILES)
def test_pictures_of_every_depth_are_the_same(tmp_path, name):
    file = tmp_path / "picture"
    file.write_bytes(FILES[name])
    for channels in (1, 3):
        picture = read_picture(str(file), channels)
        assert picture.dtype == np.uint8 and picture.shape == (8, 6, channels)
        assert np.all(picture == DIGIT[..., None])


@pytest.mark.parametrize(
    "mode, file, most",
    [
        *((mode, "x.png", 0) for mode in ("L", "LA", "RGB", "RGBA", "I;16")),
        *((mode, "x.tif", 0) for mode in ("CMYK", "RGBX", "I;16B")),
        ("LAB", "x.tif", 2),
        pytest.param("YCbCr", "x.tif", 2, marks=needs_pillow_13),
        ("RGB", "x.jpg", 8),
        ("CMYK", "x.jpg", 8),
    ],
)
def test_pictures_of_every_mode_are_the_same(tmp_path, mode, file, most):
    if mode.startswith("I;16"):
        order = ">u2" if mode == "I;16B" else "<u2"
        picture = Image.fromarray((257 * WIDE).astype(order))
    else:
        picture = Image.fromarray(DIGIT).convert("RGB").convert(mode)
    picture.save(tmp_path / file, quality=100)
    found = read_picture(str(tmp_path / file), 1)[..., 0]
    assert np.abs(found.astype(int) - DIGIT).max() <= most


@pytest.mark.parametrize("kind", ["RGBA", "LA", "index", "bytes", "gif"])
def test_transparent_parts_are_white_and_said(tmp_path, capsys, kind):
    expected, file, options = DIGIT, str(tmp_path / "x.png"), {}
    if kind in ("RGBA", "LA"):
        picture = Image.new(kind, (6, 8))
        picture.putalpha(Image.fromarray(INK))
    else:  # black ink on a transparent ground, from a palette that is all black
        expected = np.where(DIGIT > 127, np.uint8(255), 0)
        picture = Image.fromarray((DIGIT > 127).astype(np.uint8)).convert("P")
        picture.putpalette([0, 0, 0] * 256)
        options = {"transparency": b"\xff\0" if kind == "bytes" else 1}
        if kind == "gif":
            file = str(tmp_path / "x.gif")
    picture.save(file, **options)
    np.testing.assert_array_equal(read_picture(file, 1)[..., 0], expected)
    told = capsys.readouterr().err
    assert told == f"{file} is transparent: composited onto white.\n"
    opaque = str(tmp_path / "opaque.png")
    Image.fromarray(DIGIT).convert("RGBA").save(opaque)
    read_picture(opaque, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file, deep", [("x.png", True), ("x.jpg", False)])
def test_pictures_are_turned_upright(tmp_path, orientation, file, deep):
    # What a camera turned in that way stores of it (Exif 2.3, figure of tag 274).
    stored = {
        1: DIGIT,
        2: DIGIT[:, ::-1],
        3: DIGIT[::-1, ::-1],
        4: DIGIT[::-1],
        5: DIGIT.T,
        6: np.rot90(DIGIT),
        7: np.rot90(DIGIT, 2).T,
        8: np.rot90(DIGIT, -1),
    }[orientation]
    large = np.kron(stored, np.ones((8, 8), np.uint8))  # JPEG's squares
    exif = Image.Exif()
    exif[274] = orientation
    large = np.uint16(257) * large if deep else large
    Image.fromarray(large).save(tmp_path / file, exif=exif, quality=100)
    found = read_picture(str(tmp_path / file), 1)[4::8, 4::8, 0]
    assert np.abs(found.astype(int) - DIGIT).max() <= (0 if deep else 2)


@pytest.mark.parametrize("orientation", [3, 6])
def test_tiffs_are_turned_once(tmp_path, orientation):
    file = str(tmp_path / "x.tif")
    stored = np.rot90(DIGIT, 2 if orientation == 3 else 1)
    Image.fromarray(np.ascontiguousarray(stored)).save(
        file, tiffinfo={274: orientation}
    )
    np.testing.assert_array_equal(read_picture(file, 1)[..., 0], DIGIT)


@pytest.mark.parametrize("kind", ["gif", "png", "tif"])
def test_the_first_of_several_pictures_is_taken(tmp_path, kind):
    file = str(tmp_path / f"x.{kind}")
    Image.fromarray(DIGIT).save(
        file, save_all=True, append_images=[Image.fromarray(INK)]
    )
    np.testing.assert_array_equal(read_picture(file, 1)[..., 0], DIGIT)


FLOATS = (WIDE / 255).astype("f4")
whole = io.BytesIO()
Image.fromarray(DIGIT).save(whole, "JPEG")


@pytest.mark.parametrize(
    "contents, match",
    [
        *(
            (
                tiff(np.where(DIGIT == 255, np.float32(bad), FLOATS)),
                "scale them to the range",
            )
            for bad in (-0.5, 256, np.nan, np.inf)
        ),
        (tiff((WIDE - 128).astype("i2")), "has negative numbers"),
        (tiff((WIDE - 128).astype("i1")), "has negative numbers"),
        (tiff(DIGIT.astype("u2")), "integers of 16 bits, but none is above 255"),
        (tiff(DIGIT.astype("i4")), "scale them up to 2147483647"),
        (b"", "is not a picture"),
        (whole.getvalue()[:-100], "cannot be read .*[Tt]runcated"),
        (b"P5 14000 14000 255\n", "is too large: the limit is 89,478,485"),
        (b"P5 10000 10000 255\n", "is too large: the limit is 89,478,485"),
    ],
)
def test_pictures_without_a_meaning(tmp_path, contents, match):
    file = tmp_path / "x"
    file.write_bytes(contents)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as Python's -W does
        with pytest.raises(InputError, match=f"x {match}|x has .*{match}"):
            read_picture(str(file), 1)
    with pytest.raises(InputError, match=r"cannot be read .Is a directory"):
        read_picture(str(tmp_path), 1)
