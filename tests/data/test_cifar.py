# SPDX-License-Identifier: Apache-2.0
"""CIFAR prepared from its archive: the same examples, in TFDS's order."""

import functools
import hashlib
import http.server
import io
import shutil
import subprocess
import sys
import tarfile
import threading
import types

import generated
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.proto import tf_example_pb2

from rn_jax import data
from rn_jax.data import cifar, in_memory
from rn_jax.data import tfds as reader
from rn_jax.errors import InputError

ROWS = 12  # of each file in the archives


class NoTensorFlow:
    """Makes its import fail, as if it were not installed."""

    @staticmethod
    def find_spec(name, *_):
        if name == "tensorflow":
            raise ModuleNotFoundError("No module named 'tensorflow'", name=name)


@pytest.fixture(autouse=True)
def no_tensorflow(monkeypatch):
    assert "tensorflow" not in sys.modules
    monkeypatch.setattr(sys, "meta_path", [NoTensorFlow, *sys.meta_path])


def write_archive(path, facts, contents, names):
    """Write CIFAR's binary version: `contents` by file, rows of labels and pixels."""
    with tarfile.open(path, "w:gz") as tar:
        texts = {
            file: "\n".join(names[key]).encode() + b"\n"
            for key, file in zip(facts.label_keys, facts.label_files, strict=True)
        }
        for file, content in {**contents, **texts}.items():
            member = tarfile.TarInfo(facts.prefix + file)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def facts_of(builder):
    """Return what TFDS knows about the archive."""
    return builder._cifar_info.fget(types.SimpleNamespace(name=builder.name))


def random_contents(facts, classes):
    rng = np.random.default_rng(0)
    rows = {}
    for file in (*facts.train_files, *facts.test_files):
        labels = [rng.integers(0, n, (ROWS, 1)) for n in classes]
        pixels = rng.integers(0, 256, (ROWS, 3072))
        rows[file] = np.hstack([*labels, pixels]).astype(np.uint8)
    return rows


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Make a builder download from a local folder, and return that folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(folder)
    )
    handler.func.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()

        def begin(builder):
            url = f"http://127.0.0.1:{server.server_port}/archive.tar.gz"
            facts = facts_of(builder)._replace(url=url)
            monkeypatch.setattr(builder, "_cifar_info", facts)
            return folder / "archive.tar.gz", facts

        yield begin
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "classes"),
    [("cifar10", {"label": 10}), ("cifar100", {"coarse_label": 20, "label": 100})],
)
def test_load_prepares_what_the_archive_holds(serve, tmp_path, name, classes):
    archive, facts = serve(cifar.BUILDERS[name])
    names = {key: [f"{key}{i}" for i in range(n)] for key, n in classes.items()}
    rows = random_contents(facts, classes.values())
    contents = {file: table.tobytes() for file, table in rows.items()}
    write_archive(archive, facts, contents, names)
    dataset = data.load(name, data_dir=tmp_path / "my [2026] *")

    parts = ((dataset.train, facts.train_files), (dataset.test, facts.test_files))
    for part, files in parts:
        expected = np.concatenate([rows[file] for file in files])
        # Planes of red, green and blue; the label is the last of an example's labels.
        images = np.stack(
            [expected[:, -3072 + 1024 * c :][:, :1024] for c in range(3)], axis=-1
        ).reshape(-1, 32, 32, 3)
        pairs = zip(part.images, part.labels, strict=True)
        found = {image.tobytes(): label for image, label in pairs}
        assert len(found) == len(expected) == len(part)
        for image, label in zip(images, expected[:, len(classes) - 1], strict=True):
            assert found[image.tobytes()] == label

    [folder] = (tmp_path / "my [2026] *" / name).iterdir()
    there = tfds.builder_from_directory(folder)
    assert (there.name, str(there.version)) == (name, "3.0.2")
    for key in classes:
        assert there.info.features[key].names == names[key]
    assert set(there.info.features) == {"id", "image", *classes}


def test_order_is_that_of_tfds(serve, tmp_path, cifar10_dir):
    """The order of two examples does not depend on the others: 300 suffice."""
    archive, facts = serve(cifar.BUILDERS["cifar10"])
    real = tfds.builder("cifar10", data_dir=cifar10_dir)
    names = {"label": real.info.features["label"].names}
    first, contents = {}, {}
    for split, files in (("train", facts.train_files), ("test", facts.test_files)):
        source = reader.data_source(real, split)
        rows, first[split] = {}, []
        for record in reader.fetch(source, range(len(source))):
            fields = tf_example_pb2.Example.FromString(record).features.feature
            number = int(fields["id"].bytes_list.value[0].decode().split("_")[1])
            if number < 300:
                encoded, label = reader.parse_record(record)
                image = np.array(Image.open(io.BytesIO(encoded)))
                rows[number] = bytes([label]) + image.transpose(2, 0, 1).tobytes()
                first[split].append((image, label))
        joined = b"".join(rows[i] for i in range(300))
        contents |= {file: b"" for file in files} | {files[0]: joined}
    write_archive(archive, facts, contents, names)
    ours = data.load("cifar10", data_dir=tmp_path / "data")
    for part, split in ((ours.train, "train"), (ours.test, "test")):
        images, labels = zip(*first[split], strict=True)
        np.testing.assert_array_equal(part.images, np.stack(images))
        np.testing.assert_array_equal(part.labels, labels)


def test_downloads_are_checked(serve, tmp_path, monkeypatch):
    builder = cifar.BUILDERS["cifar10"]
    assert builder.url_infos == tfds.image_classification.Cifar10.url_infos
    assert len(builder.url_infos[facts_of(builder).url].checksum) == 64

    archive, facts = serve(builder)
    archive.write_bytes(b"something else")
    known = {facts.url: UrlInfo(14, hashlib.sha256(b"another").hexdigest(), "a.tar.gz")}
    monkeypatch.setattr(builder, "url_infos", known)
    with pytest.raises(InputError, match=r"could not be prepared.*[Cc]hecksum") as told:
        data.load("cifar10", data_dir=tmp_path / "data")
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "data" / "cifar10").glob("3*"))


def test_without_internet_access_it_says_what_to_do(tmp_path, monkeypatch):
    builder = cifar.BUILDERS["cifar10"]
    nobody = facts_of(builder)._replace(url="http://127.0.0.1:9/archive.tar.gz")
    monkeypatch.setattr(builder, "_cifar_info", nobody)
    with pytest.raises(
        InputError, match="with Internet access, try again with: "
    ) as told:
        data.load("cifar10", data_dir=tmp_path)
    message = str(told.value)
    assert "\n" not in message and str(tmp_path) in message
    code = message.split('python -c "')[1].removesuffix('"')
    compile(code, "command", "exec")
    assert f"cifar.prepare('cifar10', '{tmp_path}')" in code


def test_an_archive_that_is_there_is_not_asked_for(serve, tmp_path, monkeypatch):
    """As after an interrupted preparation, now without Internet access."""
    archive, facts = serve(cifar.BUILDERS["cifar10"])
    rows = random_contents(facts, [10])
    contents = {file: table.tobytes() for file, table in rows.items()}
    write_archive(archive, facts, contents, {"label": list("0123456789")})
    first = data.load("cifar10", data_dir=tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "cifar10")
    in_memory.load_cached.cache_clear()
    monkeypatch.setattr(cifar.urllib.request, "urlopen", None)
    again = data.load("cifar10", data_dir=tmp_path / "data")
    np.testing.assert_array_equal(again.test.images, first.test.images)


def test_another_process_may_come_first(tmp_path, monkeypatch):
    """The slower process fails to prepare, and reads what the faster one wrote."""

    def lose(name, data_dir):
        generated.prepare(name, data_dir)
        raise FileExistsError("the folder is there")

    monkeypatch.setattr(cifar, "prepare", lose)
    dataset = data.load("cifar10", data_dir=tmp_path)
    assert len(dataset.train) == generated.SIZES["train"]


def test_import_needs_no_tensorflow():
    assert reader._WITHOUT_TENSORFLOW == tuple(cifar.BUILDERS)
    code = "import sys; import rn_jax.data.cifar; print('tensorflow' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"
