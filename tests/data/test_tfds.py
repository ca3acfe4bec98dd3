# SPDX-License-Identifier: Apache-2.0
"""Data sets of TFDS are read as they were prepared; each failure is a sentence."""

import importlib.util
import json
import logging
import pathlib
import shutil
import subprocess
import sys

import generated
import numpy as np
import pytest

from rn_jax import InputError, data
from rn_jax.data import in_memory

TFDS_NAMES = [name for name in data.DATASETS if name != "digits"]


@pytest.fixture
def own_cifar10(generated_dir, tmp_path):
    """A copy of the generated cifar10 to damage: (data_dir, folder of the version)."""
    shutil.copytree(generated_dir / "cifar10", tmp_path / "cifar10")
    (folder,) = (tmp_path / "cifar10").iterdir()
    return tmp_path, folder


@pytest.fixture
def no_tensorflow(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def in_canonical_order(images, labels):
    """Sort by the pixels, which are all different, since TFDS shuffles."""
    order = np.lexsort(images.reshape(len(images), -1).T)
    return images[order], labels[order]


def sentence_of(data_dir, name="cifar10"):
    """Return the sentence of the error that `load` raises."""
    with pytest.raises(InputError) as caught:
        data.load(name, data_dir=data_dir)
    message = str(caught.value)
    assert name in message and "\n" not in message
    return message


@pytest.mark.parametrize("name", TFDS_NAMES)
def test_load_reads_back_what_was_prepared(generated_dir, name):
    dataset = data.load(name, data_dir=generated_dir)
    assert dataset.spec is data.DATASETS[name]
    written = {
        part: [np.concatenate(arrays) for arrays in zip(*splits, strict=True)]
        for part, splits in {
            "train": [
                generated.random_split(name, split)
                for split in dataset.spec.train_splits
            ],
            "test": [generated.random_split(name, "test")],
        }.items()
    }
    for part, examples in [("train", dataset.train), ("test", dataset.test)]:
        assert examples.images.dtype == np.uint8 and examples.labels.dtype == np.int32
        read = in_canonical_order(examples.images, examples.labels)
        expected = in_canonical_order(*written[part])
        np.testing.assert_array_equal(read[0], expected[0])
        np.testing.assert_array_equal(read[1], expected[1])


@pytest.mark.parametrize(
    "name", ["[2026]", "*", "a\\b", "@5", " a:b ", "{x}#%'\"", "a\n\u00e9"], ids=ascii
)
def test_a_folder_may_have_any_name(generated_dir, tmp_path, monkeypatch, name):
    """Also beside a folder that its name matches as a pattern, and as the current."""
    shutil.copytree(generated_dir / "mnist", tmp_path / name / "mnist")
    shutil.copytree(generated_dir / "mnist", tmp_path / "2" / "mnist")
    for file in (tmp_path / "2").glob("mnist/*/*train*"):
        file.unlink()
    expected = data.load("mnist", data_dir=generated_dir)
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path / name))
    for data_dir in (tmp_path / name, ".", "~"):
        in_memory.load_cached.cache_clear()
        found = data.load("mnist", data_dir=data_dir)
        np.testing.assert_array_equal(found.train.images, expected.train.images)
        np.testing.assert_array_equal(found.test.labels, expected.test.labels)
    shutil.rmtree(tmp_path / name / "mnist")
    in_memory.load_cached.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="mnist is not prepared in "):
        data.load("mnist", data_dir=tmp_path / name)


def test_load_is_quiet_and_needs_no_tensorflow(generated_dir):
    program = f"""
import sys
from rn_jax import data
assert not {{"tensorflow_datasets", "sklearn"}} & set(sys.modules)
data.load("cifar100", data_dir={str(generated_dir)!r})
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_not_prepared_names_folder_and_command(tmp_path, no_tensorflow, capfd):
    message = sentence_of(tmp_path, "fashion_mnist")
    assert str(tmp_path / "fashion_mnist") in message
    code = message.split(' && python -c "')[1].removesuffix('"')
    compile(code, "command", "exec")
    assert f"tfds.builder('fashion_mnist', data_dir='{tmp_path}')" in code
    assert "file_format='array_record'" in code
    assert 'pip install "rn_jax[prepare]"' in message
    assert capfd.readouterr() == ("", "")


def test_command_survives_an_odd_folder(tmp_path, no_tensorflow):
    odd = tmp_path / 'it\'s $HOME "here"'
    command = sentence_of(odd, "mnist").split(" && python -c ")[1]
    shown = subprocess.run(
        ["sh", "-c", f"printf %s {command}"], capture_output=True, text=True, check=True
    )
    assert f"data_dir={str(odd)!r}" in shown.stdout


def test_with_tensorflow_it_is_prepared_on_the_spot(tmp_path, monkeypatch, caplog):
    def prepare_instead(arguments, **options):
        assert arguments[0] == sys.executable
        assert "builder('mnist'" in arguments[2]
        generated.prepare("mnist", tmp_path)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(subprocess, "run", prepare_instead)
    with caplog.at_level(logging.WARNING):
        dataset = data.load("mnist", data_dir=tmp_path)
    assert len(dataset.train) == generated.SIZES["train"]
    assert "preparing it" in caplog.text


def test_failed_preparation_gives_its_last_line(tmp_path, monkeypatch):
    def fail(arguments, **options):
        return subprocess.CompletedProcess(arguments, 1, "", "Traceback\nNo route\n")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(subprocess, "run", fail)
    message = sentence_of(tmp_path, "mnist")
    assert "(No route)" in message and "python -c" in message


def test_tfrecord_folder_gets_the_command_that_converts_it(own_cifar10):
    data_dir, folder = own_cifar10
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for shard in folder.glob("*array_record*"):
        shard.rename(folder / shard.name.replace("array_record", "tfrecord"))
    message = sentence_of(data_dir)
    assert f"cifar10 in {folder} is in the format tfrecord, which has no" in message
    assert (
        f"tfds convert_format --dataset_version_dir={folder} "
        "--out_file_format=array_record"
    ) in message


def test_folder_converted_in_place_is_read(own_cifar10):
    # What `tfds convert_format` leaves: both formats, the new one as an alternative.
    data_dir, folder = own_cifar10
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    info["alternativeFileFormats"] = ["array_record"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    dataset = data.load("cifar10", data_dir=data_dir)
    assert len(dataset.train) == generated.SIZES["train"]


def truncate(shard):
    shard.write_bytes(shard.read_bytes()[:-500])


def empty(shard):
    shard.write_bytes(b"")


def overwrite(shard):
    size = shard.stat().st_size
    shard.write_bytes(bytes(range(256)) * (size // 256))


def lose_metadata(shard):
    (shard.parent / "dataset_info.json").write_text("{")


@pytest.mark.parametrize(
    "spoil", [truncate, empty, overwrite, pathlib.Path.unlink, lose_metadata]
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_files_are_one_sentence(own_cifar10, split, spoil):
    data_dir, folder = own_cifar10
    (shard,) = folder.glob(f"cifar10-{split}*")
    spoil(shard)
    message = sentence_of(data_dir)
    assert "damaged or incomplete" in message
    assert str(data_dir / "cifar10") in message


@pytest.mark.parametrize(
    "how",
    ["flip", generated.halve_picture, generated.no_example],
    ids=["flip", "half", "none"],
)
def test_a_damaged_record_is_named_or_left_out(own_cifar10, capsys, how):
    data_dir, folder = own_cifar10
    before = in_memory.load_cached.__wrapped__("cifar10", str(data_dir), False)
    (shard,) = folder.glob("cifar10-train*")
    generated.spoil_records(shard, {3: how, 22: how})
    message = sentence_of(data_dir)
    assert "record 3 of the split train: " in message and str(folder) in message
    rest = np.delete(np.arange(23), [3, 22])
    found = data.load("cifar10", data_dir=data_dir, damaged_records="skip")
    np.testing.assert_array_equal(found.train.images, before.train.images[rest])
    np.testing.assert_array_equal(found.train.labels, before.train.labels[rest])
    np.testing.assert_array_equal(found.test.images, before.test.images)
    assert found.train_sizes == (21,)
    said = capsys.readouterr().err.splitlines()
    for place, line in zip((3, 22), said, strict=True):
        begin = f"Record {place} of the split train of cifar10 in {folder} is damaged ("
        assert line.startswith(begin) and line.endswith(") and left out.")


@pytest.mark.parametrize("spoil", [truncate, empty, overwrite])
def test_a_damaged_file_is_not_left_out(own_cifar10, spoil, capsys):
    data_dir, folder = own_cifar10
    (shard,) = folder.glob("cifar10-test*")
    spoil(shard)
    with pytest.raises(InputError, match="damaged or incomplete"):
        data.load("cifar10", data_dir=data_dir, damaged_records="skip")
    assert capsys.readouterr().err == ""


def test_other_image_shape_is_one_sentence(own_cifar10, monkeypatch):
    data_dir, _ = own_cifar10
    spec = data.DatasetSpec(name="cifar10", image_shape=(16, 16, 3), num_classes=10)
    monkeypatch.setitem(data.DATASETS, "cifar10", spec)
    assert "damaged or incomplete" in sentence_of(data_dir)
