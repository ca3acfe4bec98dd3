# SPDX-License-Identifier: Apache-2.0
"""Data sets: read back what was written, clear sentences, and which example when."""

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

from rn_jax.data import datasets
from rn_jax.data.datasets import Examples, InputError

TFDS_NAMES = [name for name in datasets.DATASETS if name != "digits"]


@pytest.fixture(scope="session")
def generated_dir(tmp_path_factory):
    """A TFDS folder with a small data set of each schema."""
    folder = tmp_path_factory.mktemp("tfds")
    for name in TFDS_NAMES:
        generated.prepare(name, folder)
    return folder


@pytest.fixture
def own_cifar10(generated_dir, tmp_path):
    """A copy of the generated cifar10 to spoil: (data_dir, folder of the version)."""
    shutil.copytree(generated_dir / "cifar10", tmp_path / "cifar10")
    (folder,) = (tmp_path / "cifar10").iterdir()
    return tmp_path, folder


@pytest.fixture
def no_tensorflow(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture(scope="session")
def cifar10(cifar10_dir):
    """The real one, read once."""
    return datasets.load("cifar10", data_dir=cifar10_dir)


def numbered(n):
    """n examples of one pixel each, which is the label too."""
    labels = np.arange(n, dtype=np.int32)
    return Examples(labels.astype(np.uint8).reshape(n, 1, 1, 1), labels)


def in_canonical_order(images, labels):
    """TFDS shuffles what it writes: sort by the pixels, which are all different."""
    order = np.lexsort(images.reshape(len(images), -1).T)
    return images[order], labels[order]


def sentence_of(data_dir, name="cifar10"):
    """The one sentence that `load` fails with."""
    with pytest.raises(InputError) as caught:
        datasets.load(name, data_dir=data_dir)
    message = str(caught.value)
    assert name in message and "\n" not in message
    return message


# Reading


@pytest.mark.parametrize("name", TFDS_NAMES)
def test_load_reads_back_what_was_prepared(generated_dir, name):
    dataset = datasets.load(name, data_dir=generated_dir)
    assert dataset.spec is datasets.DATASETS[name]
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
    """Also beside one that its name as a pattern matches, and as the current one."""
    shutil.copytree(generated_dir / "mnist", tmp_path / name / "mnist")
    shutil.copytree(generated_dir / "mnist", tmp_path / "2" / "mnist")
    for file in (tmp_path / "2").glob("mnist/*/*train*"):
        file.unlink()
    expected = datasets.load("mnist", data_dir=generated_dir)
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path / name))
    for data_dir in (tmp_path / name, ".", "~"):
        datasets._load.cache_clear()
        found = datasets.load("mnist", data_dir=data_dir)
        np.testing.assert_array_equal(found.train.images, expected.train.images)
        np.testing.assert_array_equal(found.test.labels, expected.test.labels)
    shutil.rmtree(tmp_path / name / "mnist")
    datasets._load.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="mnist is not prepared in "):
        datasets.load("mnist", data_dir=tmp_path / name)


def test_svhn_trains_on_train_and_extra(generated_dir):
    dataset = datasets.load("svhn_cropped", data_dir=generated_dir)
    sizes = generated.SIZES
    assert len(dataset.train) == sizes["train"] + sizes["extra"]
    assert len(dataset.test) == sizes["test"]


def test_load_returns_the_same_read_only_object(generated_dir, monkeypatch):
    dataset = datasets.load("mnist", data_dir=generated_dir)
    monkeypatch.setenv("TFDS_DATA_DIR", str(generated_dir))
    assert datasets.load("mnist") is dataset  # TFDS's own rule, the same folder
    detour = generated_dir / ".." / generated_dir.name
    assert datasets.load("mnist", data_dir=detour) is dataset
    for array in (dataset.train.images, dataset.test.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_load_is_quiet_and_needs_no_tensorflow(generated_dir):
    program = f"""
import sys
from rn_jax.data import datasets
assert not {{"tensorflow_datasets", "sklearn"}} & set(sys.modules)
datasets.load("cifar100", data_dir={str(generated_dir)!r})
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_real_cifar10_has_its_published_sizes_and_means(cifar10):
    assert cifar10.train.images.shape == (50_000, 32, 32, 3)
    assert cifar10.test.images.shape == (10_000, 32, 32, 3)
    assert (np.bincount(cifar10.train.labels) == 5_000).all()
    assert (np.bincount(cifar10.test.labels) == 1_000).all()
    found = datasets.normalization(cifar10.train, "channel")
    published = np.array([0.49139968, 0.48215841, 0.44653091])
    np.testing.assert_allclose(found.mean / 255, published, atol=1e-7)
    # The deviations of fb.resnet.torch, in its rounding.
    np.testing.assert_allclose(found.std, [63.0, 62.1, 66.7], atol=0.06)


def test_real_cifar10_is_split_45k_5k(cifar10):
    train, validation = datasets.split_validation(cifar10, seed=0)
    assert (len(train), len(validation)) == (45_000, 5_000)


# Digits


def test_digits_are_scikit_learns_scans():
    from sklearn.datasets import load_digits

    dataset = datasets.load("digits")
    assert dataset.train.images.shape == (1437, 8, 8, 1)
    assert dataset.test.images.shape == (360, 8, 8, 1)

    def rows(pixels, labels):
        return sorted(map(tuple, np.c_[pixels, labels].tolist()))

    scans = load_digits()
    ours = [
        np.c_[part.images.reshape(len(part), 64), part.labels]
        for part in (dataset.train, dataset.test)
    ]
    # Every scan once, in one part or the other.
    back = np.concatenate(ours)
    back[:, :64] = np.round(back[:, :64] / 255 * 16)
    assert rows(back[:, :64], back[:, 64]) == rows(scans.data, scans.target)
    assert dataset.train.images.max() == dataset.test.images.max() == 255
    # A fifth of every class, to within one scan.
    of_class = np.bincount(scans.target)
    np.testing.assert_allclose(np.bincount(dataset.test.labels), of_class / 5, atol=1)


# Sentences for the user


def test_unknown_name_lists_near_names_or_all_names():
    with pytest.raises(InputError, match="'cifar_10'; near it: cifar10") as caught:
        datasets.load("cifar_10")
    assert "svhn" not in str(caught.value)
    with pytest.raises(InputError) as caught:
        datasets.get_spec("zzz")
    assert all(name in str(caught.value) for name in datasets.DATASETS)


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
        dataset = datasets.load("mnist", data_dir=tmp_path)
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
    assert "tfrecord" in message
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
    dataset = datasets.load("cifar10", data_dir=data_dir)
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
    before = datasets._load.__wrapped__("cifar10", str(data_dir), False)
    (shard,) = folder.glob("cifar10-train*")
    generated.spoil_records(shard, {3: how, 22: how})
    message = sentence_of(data_dir)
    assert "record 3 of the split train: " in message and str(folder) in message
    rest = np.delete(np.arange(23), [3, 22])
    found = datasets.load("cifar10", data_dir=data_dir, damaged_records="skip")
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
        datasets.load("cifar10", data_dir=data_dir, damaged_records="skip")
    assert capsys.readouterr().err == ""


def test_damaged_records_are_for_stopping_or_skipping():
    with pytest.raises(InputError, match="must be stop or skip, not 'ignore'"):
        datasets.load("digits", damaged_records="ignore")


def test_other_image_shape_is_one_sentence(own_cifar10, monkeypatch):
    data_dir, _ = own_cifar10
    spec = datasets.DatasetSpec(name="cifar10", image_shape=(16, 16, 3), num_classes=10)
    monkeypatch.setitem(datasets.DATASETS, "cifar10", spec)
    assert "damaged or incomplete" in sentence_of(data_dir)


# Which example when


def test_split_validation_is_a_fixed_partition():
    dataset = whole(numbered(100))
    train, validation = datasets.split_validation(dataset, seed=3)
    assert (len(train), len(validation)) == (90, 10)
    both = np.concatenate([train.labels, validation.labels])
    assert sorted(both) == list(range(100))
    np.testing.assert_array_equal(validation.images.ravel(), validation.labels)
    again = datasets.split_validation(dataset, seed=3)[1]
    other = datasets.split_validation(dataset, seed=4)[1]
    np.testing.assert_array_equal(again.labels, validation.labels)
    assert set(other.labels) != set(validation.labels)


def whole(examples):
    spec = datasets.DatasetSpec(name="numbered", image_shape=(1, 1, 1), num_classes=100)
    return datasets.Dataset(spec, examples, examples, (len(examples),))


def test_too_few_examples_to_hold_some_out():
    with pytest.raises(InputError, match="9 training examples are too few"):
        datasets.split_validation(whole(numbered(9)), seed=0)


def test_validation_part_of_svhn_is_balanced():
    """400 of each class from train and 200 from extra (Huang et al. 2016)."""
    spec = datasets.get_spec("svhn_cropped")
    assert spec.train_splits == ("train", "extra")
    rng = np.random.default_rng(0)
    sizes = (6_000, 9_000)
    shares = rng.dirichlet(np.full(10, 100.0), 2)  # classes are not as frequent
    labels = [rng.choice(10, n, p=p) for n, p in zip(sizes, shares, strict=True)]
    labels = np.concatenate(labels).astype(np.int32)
    images = np.zeros((15_000, 1, 1, 1), np.uint8)
    images[6_000:] = 1  # which split it is from
    train = datasets.Examples(images, labels)
    dataset = datasets.Dataset(spec, train, train, sizes)
    kept, held_out = datasets.split_validation(dataset, seed=0)
    assert (len(kept), len(held_out)) == (9_000, 6_000)
    for split, count in enumerate((400, 200)):
        of_split = held_out.labels[held_out.images.ravel() == split]
        assert np.bincount(of_split).tolist() == [count] * 10
    together = np.concatenate([kept.labels, held_out.labels])
    np.testing.assert_array_equal(np.bincount(together), np.bincount(labels))
    with pytest.raises(InputError, match="takes 400 examples of each class from its"):
        few = datasets.Dataset(spec, train, train, (300, 14_700))
        datasets.split_validation(few, seed=0)


def test_an_epoch_visits_every_example_at_most_once_in_an_order_of_its_own():
    examples, options = numbered(50), {"batch_size": 8, "seed": 1}
    epochs = []
    for epoch in range(3):
        batches = [
            datasets.train_batch(examples, step=6 * epoch + i, **options)
            for i in range(6)
        ]
        assert all(batch["mask"].all() and len(batch["mask"]) == 8 for batch in batches)
        epochs.append(np.concatenate([batch["label"] for batch in batches]))
        pixels = np.concatenate([batch["image"].ravel() for batch in batches])
        np.testing.assert_array_equal(pixels, epochs[-1])
        assert len(set(epochs[-1])) == 48  # 50 without the two dropped
        order = datasets.epoch_permutation(50, seed=1, epoch=epoch)
        np.testing.assert_array_equal(epochs[-1], order[:48])
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_epoch_permutation_is_a_permutation_of_seed_and_epoch():
    order = datasets.epoch_permutation(1000, seed=0, epoch=5)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    # (seed, epoch) = (0, 5) and (5, 0) are different streams.
    for seed, epoch in [(5, 0), (1, 5), (0, 4)]:
        other = datasets.epoch_permutation(1000, seed=seed, epoch=epoch)
        assert not np.array_equal(order, other)


def test_batch_of_a_step_does_not_depend_on_the_steps_before():
    examples, options = numbered(40), {"batch_size": 7, "seed": 2}
    in_turn = [
        datasets.train_batch(examples, step=step, **options)["label"]
        for step in range(20)
    ]
    datasets.epoch_permutation.cache_clear()
    for step in (13, 0, 19, 6):
        alone = datasets.train_batch(examples, step=step, **options)["label"]
        np.testing.assert_array_equal(alone, in_turn[step])


@pytest.mark.parametrize("batch_size", [0, 41])
def test_batch_size_has_to_fit(batch_size):
    with pytest.raises(InputError, match=f"batch size of {batch_size} does not fit 40"):
        datasets.train_batch(numbered(40), step=0, batch_size=batch_size, seed=0)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (12, 4), (3, 8), (5, 1)])
def test_evaluation_counts_every_example_once(n, batch_size):
    batches = list(datasets.eval_batches(numbered(n), batch_size=batch_size))
    assert len(batches) == -(-n // batch_size)
    for batch in batches:
        assert batch["image"].shape == (batch_size, 1, 1, 1)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32 and batch["mask"].dtype == np.bool_
        assert not batch["image"][~batch["mask"]].any()
        assert not batch["label"][~batch["mask"]].any()
    seen = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(n))


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
@pytest.mark.parametrize("kind", ["train", "evaluation"])
def test_hosts_share_the_same_batch(kind, num_hosts):
    """Also the last one of an evaluation, which has 1 real row of 8."""

    def batches(**options):
        examples, size = numbered(25), 8
        if kind == "evaluation":
            return datasets.eval_batches(examples, batch_size=size, **options)
        return (
            datasets.train_batch(
                examples, step=step, batch_size=size, seed=1, **options
            )
            for step in range(5)
        )

    hosts = [
        batches(rows=datasets.rows_of_host(8, host, num_hosts))
        for host in range(num_hosts)
    ]
    for parts, whole in zip(zip(*hosts, strict=True), batches(), strict=True):
        assert {len(part["label"]) for part in parts} == {8 // num_hosts}
        for name, array in whole.items():
            together = np.concatenate([part[name] for part in parts])
            assert together.dtype == array.dtype
            np.testing.assert_array_equal(together, array)


# Normalisation


@pytest.fixture(scope="module")
def many():
    """More examples than one chunk of the sums, brighter to the left and in red."""
    rng = np.random.default_rng(0)
    bright = np.array([200, 120, 60]) * np.linspace(1, 0.3, 4)[:, None]
    images = rng.normal(bright, 30, (1500, 5, 4, 3)).clip(0, 255).astype(np.uint8)
    return Examples(images, np.zeros(1500, np.int32))


def test_channel_normalization(many):
    found = datasets.normalization(many, "channel")
    pixels = many.images.astype(np.float64)
    assert found.mean.dtype == found.std.dtype == np.float32
    np.testing.assert_allclose(found.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.std, pixels.std(axis=(0, 1, 2)), rtol=1e-6)


def test_mean_image_normalization(many):
    found = datasets.normalization(many, "mean_image")
    pixels = many.images.astype(np.float64)
    assert found.mean.shape == (5, 4, 3) and found.std.shape == ()
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-6)
    # The 2016 code takes the std of the raw pixels, not of what the mean image leaves.
    np.testing.assert_allclose(found.std, pixels.std(), rtol=1e-6)
    assert abs(found.std - (pixels - found.mean).std()) > 1


def test_a_constant_channel_is_not_divided_by_zero():
    found = datasets.normalization(Examples(*[np.full((4, 2, 2, 1), 7)] * 2), "channel")
    assert (found.mean, found.std) == (7, 1)


def test_unknown_normalization_names_both():
    with pytest.raises(InputError, match="'zca': known: channel, mean_image"):
        datasets.normalization(numbered(3), "zca")


def test_imagenets_normalization_whatever_the_examples():
    """Of pixels 0..255, the constants by which torchvision takes those of 0..1."""
    examples = Examples(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32))
    stats = datasets.normalization(examples, "imagenet")
    pixels = np.array([0.0, 128.0, 255.0])[:, None]
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose((pixels - stats.mean) / stats.std, expected, rtol=1e-5)
