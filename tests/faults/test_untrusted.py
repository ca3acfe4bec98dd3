# SPDX-License-Identifier: Apache-2.0
"""Files that somebody made to do harm: no code of theirs runs, and limits are said."""

import argparse
import json
import os
import pickle
import re
import struct
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from flax import struct as flax_struct

from rn_jax import filesystem
from rn_jax.checkpoint import Checkpoints
from rn_jax.data import transforms
from rn_jax.errors import InputError
from rn_jax.interop import from_torch, read_weights

KIND = "untrusted file"
ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.faults]


DAMAGED = "cannot be read as weights alone; it is damaged or contains other"


def refused(sentence, call, *arguments):
    """That a call is refused in such a sentence, at once and within 64 MB."""
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=sentence) as error:
            call(*arguments)
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 20
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message


# --- Weights of PyTorch


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is an optional peer")


@pytest.mark.filterwarnings("ignore")
def test_weights_that_would_run_code(torch, tmp_path, faults):
    marker, entry = tmp_path / "ran", {"w": Runs(tmp_path / "ran")}
    torch.save(entry, tmp_path / "zip.pth")
    torch.save(entry, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    options = {"args": argparse.Namespace(w=entry["w"])}  # which may be in a file
    torch.save(options, tmp_path / "options.pth")
    for protocol in range(6):
        text = pickle.dumps(entry, protocol=protocol)
        (tmp_path / f"{protocol}.bin").write_bytes(text)
    found = sorted(tmp_path.iterdir())
    for file in found:
        refused(DAMAGED, read_weights, file)
        assert not marker.exists()
    faults("code in weights", len(found))


def rewritten(source, target, name=lambda name: name, **extra):
    """A copy of a ZIP with other names and more entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            new.writestr(name(entry), old.read(entry))
        for entry, text in extra.items():
            new.writestr(entry, text)
    return target


def test_names_that_climb_out_of_the_folder(torch, tmp_path, faults):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    torch.save({"w": torch.ones(3)}, folder / "good.pth")
    before = sorted(tmp_path.rglob("*"))
    good, bad = folder / "good.pth", folder / "bad.pth"
    for name in (lambda n: f"../../{n}", lambda n: f"/{n}", lambda n: f"..\\{n}"):
        rewritten(good, bad, name)
        try:
            assert set(read_weights(bad)) == {"w"}  # within the file it is only a name
        except InputError as error:
            assert DAMAGED in str(error)
        assert sorted(tmp_path.rglob("*")) == sorted([*before, bad])
    rewritten(good, bad, **{"../../ran": "x", "good/../../../ran": "x"})
    refused(DAMAGED, read_weights, bad)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, bad])
    faults("climbing names", 4)


@pytest.mark.filterwarnings("ignore")
def test_tensors_larger_than_their_file(torch, tmp_path, faults):
    peta = 10**15
    one = torch.zeros(1)
    entries = {
        "claims 4,000,000,000,000,000 bytes": torch.as_strided(one, (peta,), (0,)),
        "claims": one.expand(10**6, 10**3),
        "more than weights: 'w'": torch.empty(peta, device="meta"),
        "contains more than weights": torch.sparse_coo_tensor(
            torch.zeros((1, 1), dtype=torch.int64), one, (peta,)
        ),
    }
    for sentence, tensor in entries.items():
        torch.save({"w": tensor}, tmp_path / "w.pth")
        refused(sentence, read_weights, tmp_path / "w.pth")
    many = {str(i): torch.zeros(10**4).expand(10, 10**4) for i in range(10)}
    torch.save({"w": one, **many}, tmp_path / "w.pth")
    refused("claims", read_weights, tmp_path / "w.pth")
    faults("claims of weights", len(entries) + 1)


def test_zip_that_unpacks(torch, tmp_path, faults):
    """100 MB of zeros in 0.1 MB; nothing of it is unpacked."""
    torch.save({"w": torch.zeros(1)}, tmp_path / "small.pth")
    with (
        zipfile.ZipFile(tmp_path / "small.pth") as old,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
        with new.open("small/data/1", "w") as file:
            for _ in range(100):
                file.write(bytes(10**6))
    refused(r"unpacks to 100,0\d\d,\d+ bytes from", read_weights, tmp_path / "bomb.pth")
    faults("ZIP that unpacks")


@pytest.mark.filterwarnings("ignore")
def test_weights_with_single_bytes_changed(torch, tmp_path, faults):
    """Whatever the reader raises becomes a sentence, and nothing else is let out."""
    rng = np.random.default_rng(0)
    content = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}
    torch.save(content, tmp_path / "zip.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "w.safetensors").write_bytes(safetensors(TENSOR, bytes(16)))
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        for _ in range(200):
            damaged = bytearray(whole[: rng.integers(1, len(whole), endpoint=True)])
            for place in rng.integers(len(damaged), size=rng.integers(1, 4)):
                damaged[place] = rng.integers(256)
            file.write_bytes(damaged)
            try:
                from_torch("resnet20", read_weights(file))
            except InputError:
                pass
        faults("changed weights", 200)


@pytest.mark.parametrize(
    "weights",
    [
        {"linear.weight": np.float32(1)},
        {"linear.weight": np.zeros((10**12, 0), np.float32)},
        {"linear.weight": np.zeros((10, 64)), "conv1.weight": np.zeros(())},
        {"linear.weight": np.zeros((10, 64)), "conv1.weight": np.zeros((0, 3))},
    ],
    ids=["scalar", "empty", "no axes", "no channels"],
)
def test_weights_of_odd_shapes(weights, faults):
    refused("resnet20|linear", from_torch, "resnet20", weights)
    faults("odd shapes")


# --- safetensors

TENSOR = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


def safetensors(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape, start, end, dtype="F32"):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


SAFETENSORS = {
    "nothing": b"",
    "header of 2^60 bytes": safetensors(b"{}", length=2**60),
    "header cut off": safetensors(b'{"w"', length=400),
    "no JSON": safetensors(b"\xff\xfe{"),
    "100,000 levels": safetensors(b"[" * 10**5),
    "beyond the file": safetensors(tensor([4], 0, 16)),
    "after the file": safetensors(tensor([4], 100, 116), bytes(16)),
    "backwards": safetensors(tensor([4], 16, 0), bytes(16)),
    "negative": safetensors(tensor([-4], 0, 16), bytes(16)),
    "petabytes": safetensors(tensor([10**15], 0, 4 * 10**15), bytes(16)),
    "product over 2^64": safetensors(tensor([2**33, 2**33], 0, 0)),
    "shape of another size": safetensors(tensor([5], 0, 16), bytes(16)),
    "two on one place": safetensors({**TENSOR, "v": TENSOR["w"]}, bytes(16)),
    "unknown dtype": safetensors(tensor([4], 0, 16, "F33"), bytes(16)),
    "no dtype of NumPy": safetensors(tensor([16], 0, 16, "F8_E4M3"), bytes(16)),
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS)
def test_safetensors(content, tmp_path, faults):
    (tmp_path / "w.safetensors").write_bytes(content)
    refused("is not a file of saf", read_weights, tmp_path / "w.safetensors")
    faults("safetensors")


# --- Pictures


def png(height, width, *, data=b""):
    def chunk(kind, content):
        length, digest = len(content), zlib.crc32(kind + content)
        return struct.pack(">I", length) + kind + content + struct.pack(">I", digest)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(height, width, *, before=b""):
    """A JPEG of 8x8 pixels that says another size, with something before that."""
    import cv2

    whole = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    frame = re.search(rb"\xff\xc0..\x08", whole, re.S)
    size = struct.pack(">HH", height, width)
    changed = whole[: frame.end()] + size + whole[frame.end() + 4 :]
    return changed[:2] + before + changed[2:]


THUMBNAIL = b"\xff\xe1\x00\x0d\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03\x00"


@pytest.mark.parametrize(
    "picture, sentence",
    [
        (png(100_000, 100_000), "100000x100000 pixels is too large .* 134,217,728"),
        (png(2**31 - 1, 1), "2147483647x1 pixels is too large"),
        (png(0, 100), "not a complete JPEG"),
        (png(2**13, 2**13, data=zlib.compress(bytes(100))), None),
        (jpeg(65_500, 65_500), "65500x65500 pixels is too large"),
        (jpeg(65_500, 65_500, before=THUMBNAIL), "65500x65500 pixels is too large"),
        (jpeg(65_500, 65_500, before=b"\xff\xff\xff"), "65500x65500 pixels is too"),
        (jpeg(65_500, 65_500, before=b"stray"), "65500x65500 pixels is too large"),
        (jpeg(0, 8), "not a complete JPEG"),
        (b"\xff\xd8" + b"\xff" * 10**5, "not a complete JPEG"),
        (b"\xff\xd8" + b"\xff\xe0\x00\x00" * 10**4, "not a complete JPEG"),
        (b"BM" + bytes(100), "not a complete JPEG"),
    ],
)
def test_pictures(picture, sentence, faults):
    pytest.importorskip("cv2", reason="OpenCV is of the extra `imagenet`")
    try:
        image = transforms.decode_jpeg(picture)
        assert sentence is None and image.shape == (2**13, 2**13, 3)
    except InputError as error:
        assert re.search(sentence or "not a complete", str(error))
    faults("picture")


def test_jpegs_keep_their_size(faults):
    pytest.importorskip("cv2", reason="OpenCV is of the extra `imagenet`")
    for before in (b"", THUMBNAIL, b"\xff"):
        assert transforms.decode_jpeg(jpeg(8, 8, before=before)).shape == (8, 8, 3)


# --- JSON

JSON = {
    "nested": "[" * 10**5,
    "nested dicts": '{"a":' * 10**5,
    "list": "[1, 2]",
    "NaN": "NaN",
    "half": '{"model": "res',
    "digits": '{"seed": ' + "9" * 10**4 + "}",
    "nothing": "",
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_json(text, tmp_path, faults):
    file = epath.Path(tmp_path) / "config.json"
    file.write_text(text)
    refused("damaged: it contains no JSON dict", filesystem.read_json, file)
    faults("JSON")


def test_json_of_gigabytes_and_bytes(tmp_path, faults):
    file = epath.Path(tmp_path) / "config.json"
    with open(file, "wb") as sparse:
        sparse.truncate(10**10)
    refused("has 10,000,000,000 bytes; at most 67,108,864", filesystem.read_json, file)
    file.write_bytes(b"\xff\xfe{}")
    refused("damaged", filesystem.read_json, file)
    faults("JSON", 2)


# --- Checkpoints


@flax_struct.dataclass
class State:
    """What a checkpoint needs of a state."""

    step: np.ndarray
    params: dict


STATE = State(np.int32(3), {"w": np.ones((4, 5), np.float32)})


@pytest.mark.parametrize(
    "claims",
    [
        {"shape": [10**6, 10**9], "chunks": [4, 5]},
        {"shape": [10**6, 10**9], "chunks": [10**6, 10**9]},
        {"chunks": [10**6, 10**9]},
    ],
    ids=["shape", "shape and chunks", "chunks"],
)
def test_checkpoint_that_claims_petabytes(claims, tmp_path, faults, capsys):
    """Reading it would end the process: TensorStore cannot say that memory is short."""
    import tensorstore

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(STATE, {})
    checkpoints.close()
    folder = tmp_path / "checkpoints/3/state"
    store = {"driver": "ocdbt", "base": f"file://{folder}/"}
    store = tensorstore.KvStore.open(store).result()
    array = json.loads(store.read(b"params.w/.zarray").result().value)
    store.write(b"params.w/.zarray", json.dumps({**array, **claims}).encode()).result()
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    limit = r"claims 1,000,000,000,000,001 numbers; at most 21 are allowed"
    with pytest.raises(InputError, match=limit):
        checkpoints.read(3, STATE)
    with pytest.raises(InputError, match="at most 1,000 are allowed"):
        checkpoints.read(3, most=1000)
    with pytest.raises(InputError, match=r"All checkpoints .* are damaged"):
        checkpoints.restore(STATE)
    checkpoints.close()
    faults("claims of a checkpoint", 3)


# --- The code itself


def test_nothing_here_unpickles_freely(faults):
    free = re.compile(
        r"pickle\.loads?\(|Unpickler|joblib\.load|yaml\.(unsafe_)?load\(|\beval\("
        r"|\bexec\(|allow_pickle=True|weights_only=False|extractall|np\.load\("
    )
    searched = [*ROOT.glob("rn_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    assert len(searched) > 40
    for file in searched:
        for line in file.read_text().splitlines():
            assert not free.search(line), f"{file.name}: {line}"
    faults("free unpickling")
