# SPDX-License-Identifier: Apache-2.0
"""ImageNet's batches: which examples at which step, by any worker, and their errors."""

import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import generated
import numpy as np
import pytest

from rn_jax import data
from rn_jax.data import imagenet, transforms
from rn_jax.errors import InputError

TRAIN, VALIDATION = 24, 11
ROOT = pathlib.Path(imagenet.__file__).parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A TFDS folder with a small imagenet2012."""
    folder = tmp_path_factory.mktemp("tfds")
    generated.prepare_imagenet(folder, train=TRAIN, validation=VALIDATION)
    return folder


@pytest.fixture(scope="module")
def source(data_dir):
    return open_source(data_dir)


@pytest.fixture
def own_folder(data_dir, tmp_path):
    """The folder of a copy's version, to be damaged."""
    shutil.copytree(data_dir / "imagenet2012", tmp_path / "imagenet2012")
    (folder,) = (tmp_path / "imagenet2012").iterdir()
    return folder


train_view = functools.partial(transforms.area_crop, size=32)
eval_view = functools.partial(transforms.eval_view, crops="center", resize=36, size=32)


def open_source(data_dir, **options):
    return imagenet.Source(
        parts=imagenet.open_records(data_dir, **options),
        batch_size=4,
        seed=3,
        train_view=train_view,
        eval_view=eval_view,
        num_workers=0,
    )


def train(source, first_step, last_step, **fields):
    source = dataclasses.replace(source, **fields)
    return source.train_batches(first_step, last_step)


def evaluate(source, *, batch_size=4, limit=None, **fields):
    source = dataclasses.replace(source, **fields)
    return source.eval_batches("test", batch_size=batch_size, limit=limit)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert set(a) == set(b) == {"image", "label", "mask"}
        for name in a:
            assert type(a[name]) is np.ndarray and a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


# What is in a batch


def test_every_picture_is_decoded_with_its_label(source):
    for records, split, size in [
        (source.parts["train"], "train", TRAIN),
        (source.parts["test"], "validation", VALIDATION),
    ]:
        assert len(records) == size
        encoded = generated.imagenet_split(split, size)
        labels = []
        for image, label, _ in records.decode(np.arange(size)):
            expected = transforms.decode_jpeg(encoded[label])
            np.testing.assert_array_equal(image, expected)
            labels.append(label)
        assert sorted(labels) == list(range(size))
    assert source.num_train == TRAIN


def test_batches_hold_the_examples_that_the_seed_and_the_step_say(source):
    """The order is `epoch_permutation`, as for data sets in memory."""
    labels = np.array(
        [label for _, label, _ in source.parts["train"].decode(np.arange(TRAIN))]
    )
    in_memory = data.Examples(np.zeros((TRAIN, 1, 1, 1), np.uint8), labels)
    for step, batch in enumerate(train(source, 0, 8, batch_size=7)):
        expected = data.train_batch(in_memory, step=step, batch_size=7, seed=3)
        np.testing.assert_array_equal(batch["label"], expected["label"])
        assert batch["image"].shape == (7, 32, 32, 3) and batch["mask"].all()
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32 and batch["mask"].dtype == np.bool_


def test_an_epoch_holds_an_example_once_and_is_shuffled_anew(source):
    steps = TRAIN // 7
    labels = [batch["label"] for batch in train(source, 0, 2 * steps, batch_size=7)]
    first, second = np.split(np.concatenate(labels), 2)
    assert len(set(first)) == len(set(second)) == 7 * steps
    assert not np.array_equal(first, second)


def pixels(source, epochs, batch_size=4, seed=3):
    """Return the image of every (epoch, label)."""
    steps = TRAIN // batch_size
    batches = train(source, 0, epochs * steps, batch_size=batch_size, seed=seed)
    return {
        (i // steps, int(label)): image
        for i, batch in enumerate(batches)
        for image, label in zip(batch["image"], batch["label"], strict=True)
    }


def test_draws_depend_on_seed_epoch_and_index_alone(source):
    found = pixels(source, epochs=2)
    assert len(found) == 2 * TRAIN
    again = pixels(source, epochs=2, batch_size=8)
    other = pixels(source, epochs=1, seed=4)
    for (epoch, label), image in found.items():
        np.testing.assert_array_equal(image, again[epoch, label])
        if epoch == 0:
            assert not np.array_equal(image, found[1, label])
            assert not np.array_equal(image, other[0, label])


def test_any_step_can_be_entered(source):
    whole = list(train(source, 0, 15))  # six steps are an epoch
    for first in (0, 5, 6, 13, 15):
        assert_same(train(source, first, 15), whole[first:])


@pytest.mark.parametrize("num_hosts", [2, 4])
@pytest.mark.parametrize("kind", ["train", "evaluation"])
def test_hosts_share_the_same_batch(source, kind, num_hosts):
    def batches(**host):
        return (
            train(source, 4, 8, **host) if kind == "train" else evaluate(source, **host)
        )

    hosts = [batches(host_index=i, num_hosts=num_hosts) for i in range(num_hosts)]
    assert_same(map(together, zip(*hosts, strict=True)), batches())


def together(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_every_validation_image_counts_once(source, batch_size):
    batches = list(evaluate(source, batch_size=batch_size))
    assert len(batches) == -(-VALIDATION // batch_size)
    expected = {
        label: eval_view(image)
        for image, label, _ in source.parts["test"].decode(np.arange(VALIDATION))
    }
    labels = []
    for batch in batches:
        assert batch["image"].shape == (batch_size, 32, 32, 3)
        mask = batch["mask"]
        for image, label in zip(
            batch["image"][mask], batch["label"][mask], strict=True
        ):
            np.testing.assert_array_equal(image, expected[label])
            labels.append(label)
        assert not batch["image"][~mask].any() and not batch["label"][~mask].any()
    assert labels == list(expected)


@pytest.mark.parametrize("limit", [0, 1, 6, 11, 99])
def test_evaluation_can_be_limited(source, limit):
    whole = np.concatenate([b["label"][b["mask"]] for b in evaluate(source)])
    found = [b["label"][b["mask"]] for b in evaluate(source, limit=limit)]
    np.testing.assert_array_equal(np.concatenate([[], *found]), whole[:limit])


def test_views_of_an_image_stay_together(source):
    def views(image):
        return transforms.ten_crop(transforms.resize_shorter(image, 36), 32)

    batches = list(evaluate(source, eval_view=views))
    assert all(batch["image"].shape == (4, 10, 32, 32, 3) for batch in batches)
    images = [batch["image"][batch["mask"]] for batch in batches]
    expected = [views(image) for image, _, _ in whole(source.parts["test"])]
    np.testing.assert_array_equal(np.concatenate(images), expected)


def test_views_of_several_shapes_come_as_a_list(source):
    views = functools.partial(transforms.dense_views, sizes=(32, 48))
    batches = list(evaluate(source, batch_size=1, eval_view=views))
    decoded = source.parts["test"].decode(np.arange(VALIDATION))
    for batch, (image, label, _) in zip(batches, decoded, strict=True):
        for found, expected in zip(batch["image"], views(image), strict=True):
            np.testing.assert_array_equal(found, expected[None])
        assert batch["label"] == [label] and batch["mask"] == [True]
    # A host whose row is only filling up still gets views.
    *_, last = evaluate(
        source, batch_size=2, eval_view=views, host_index=1, num_hosts=2
    )
    assert not last["mask"].any() and not any(view.any() for view in last["image"])


# Workers


def worker_pids():
    return [child.pid for child in multiprocessing.active_children()]


def test_workers_make_the_same_batches_and_end_when_closed(source):
    def in_a_worker_without_backend(rng, image):
        from jax._src import xla_bridge

        assert multiprocessing.parent_process() is not None
        assert not xla_bridge.backends_are_initialized()
        assert "tensorflow" not in sys.modules
        return train_view(rng, image)

    batches = train(
        source, 5, 100_000, num_workers=2, train_view=in_a_worker_without_backend
    )
    found = [next(batches) for _ in range(4)]
    assert len(worker_pids()) == 2
    batches.close()
    assert worker_pids() == []
    assert_same(found, train(source, 5, 9))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_and_ends_the_others(source):
    batches = train(source, 0, 100_000, num_workers=2)
    next(batches)
    os.kill(worker_pids()[1], signal.SIGKILL)
    with pytest.raises(InputError, match=r"was killed .* exit code -9"):
        for _ in batches:
            pass
    assert worker_pids() == []


PROGRAM = f"""
import multiprocessing, os, signal, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import test_imagenet

source = test_imagenet.open_source(sys.argv[1])
batches = test_imagenet.train(source, 0, 100_000, num_workers=1)
next(batches)
print(*test_imagenet.worker_pids(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed(data_dir):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(data_dir)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (pid,) = map(int, done.stdout.split())
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")


# Sentences for the user


def sentence_of(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_not_prepared_says_what_to_fetch_and_the_command(tmp_path):
    message = sentence_of(imagenet.open_records, tmp_path)
    assert str(tmp_path / "imagenet2012") in message
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in message
    assert str(tmp_path / "downloads" / "manual") in message
    assert f"tfds.builder('imagenet2012', data_dir='{tmp_path}')" in message


@pytest.mark.parametrize("package", ["grain", "cv2"])
def test_a_missing_package_is_named_with_its_extra(data_dir, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = sentence_of(imagenet.open_records, data_dir)
    assert package in message and 'pip install "rn_jax[imagenet]"' in message


def test_a_missing_file_is_one_sentence(own_folder):
    next(own_folder.glob("*validation*")).unlink()
    message = sentence_of(imagenet.open_records, own_folder.parents[1])
    assert "damaged or incomplete" in message and str(own_folder) in message


def test_a_folder_converted_in_place_is_read(own_folder):
    # What `tfds convert_format` leaves: both formats, the new one as an alternative.
    info = json.loads((own_folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    info["alternativeFileFormats"] = ["array_record"]
    (own_folder / "dataset_info.json").write_text(json.dumps(info))
    assert open_source(own_folder.parents[1]).num_train == TRAIN


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_record_is_named(own_folder, num_workers):
    (shard,) = own_folder.glob("*train*")
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    shard.write_bytes(content)
    source = open_source(own_folder.parents[1])
    batches = train(source, 0, 6, num_workers=num_workers)
    message = sentence_of(list, batches)
    found = re.match(
        r"Record (\d+) of the split train of imagenet2012 in (\S+) is damaged", message
    )
    assert found and found[2] == str(own_folder)
    # It is that one, and the others are as they were.
    damaged = int(found[1])
    records = source.parts["train"]
    assert len(list(records.decode(np.delete(np.arange(TRAIN), damaged)))) == 23
    with pytest.raises(InputError, match=f"Record {damaged} "):
        list(records.decode(np.array([damaged])))


# What is said of a record of each kind of damage.
REASONS = {
    "flip": "",
    generated.halve_picture: "bytes are not a complete JPEG or PNG",
    generated.no_example: "Error parsing message",
}


@pytest.mark.parametrize("how", REASONS, ids=["flip", "half", "none"])
def test_a_damaged_validation_image_is_named(own_folder, how):
    (shard,) = own_folder.glob("*validation*")
    generated.spoil_records(shard, {7: how})
    source = open_source(own_folder.parents[1])
    message = sentence_of(list, evaluate(source))
    assert re.match(rf"Record 7 of the split validation .*{REASONS[how]}", message)
    assert message.endswith("or set damaged_records=skip.")


# The records that stand for damaged ones of 24: around the end, and not a damaged one.
INSTEAD = {5: 7, 6: 7, 23: 0}


@pytest.fixture
def damaged(own_folder):
    """A source that skips three damaged records of each split."""
    imagenet.print_once.cache_clear()
    for split, last in (("train", 23), ("validation", 10)):
        (shard,) = own_folder.glob(f"*{split}*")
        spoil = dict(zip((5, 6, last), REASONS, strict=True))
        generated.spoil_records(shard, spoil)
    return open_source(own_folder.parents[1], damaged_records="skip")


def test_in_training_the_next_record_stands_for_a_damaged_one(damaged, source, capfd):
    decoded = {place: found for place, found in enumerate(whole(source.parts["train"]))}
    for step, batch in enumerate(train(damaged, 0, 12)):
        epoch, position = divmod(step, 6)
        order = data.epoch_permutation(TRAIN, seed=3, epoch=epoch)
        for row, index in enumerate(order[4 * position : 4 * position + 4]):
            image, label, _ = decoded[INSTEAD.get(int(index), int(index))]
            # With what is drawn at its own place.
            rng = np.random.default_rng([3, epoch, int(index)])
            expected = train_view(rng, image)
            np.testing.assert_array_equal(batch["image"][row], expected)
            assert batch["label"][row] == label
        assert batch["mask"].all()
    said = capfd.readouterr().err.splitlines()
    said = [line for line in said if line.startswith("Record")]
    assert sorted(line.split()[1] for line in said) == ["23", "5", "6"]
    assert all("of the split train of imagenet2012 in " in line for line in said)
    assert all(line.endswith(") and skipped.") for line in said)


def whole(records):
    return records.decode(np.arange(len(records)))


def test_a_held_out_record_never_stands_for_a_damaged_one(damaged, source):
    kept = np.array([0, 5, 9, 23])  # after 5 comes 9, and after 23 comes 0
    found = [
        (label, intact) for _, label, intact in whole(damaged.parts["train"].take(kept))
    ]
    labels = [label for _, label, _ in whole(source.parts["train"])]
    expected = [(0, True), (9, False), (9, True), (0, False)]
    assert found == [(labels[place], intact) for place, intact in expected]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_in_evaluation_a_damaged_image_does_not_count(damaged, source, batch_size):
    place = 0
    found = evaluate(damaged, batch_size=batch_size)
    intact = evaluate(source, batch_size=batch_size)
    for batch, expected in zip(found, intact, strict=True):
        places = place + np.arange(batch_size)
        counted = expected["mask"] & ~np.isin(places, (5, 6, 10))
        np.testing.assert_array_equal(batch["mask"], counted)
        for name in ("image", "label"):
            np.testing.assert_array_equal(batch[name][counted], expected[name][counted])
            assert not batch[name][~counted].any()
        place += batch_size


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_skip_the_same_records(damaged, num_hosts):
    for batches in (
        functools.partial(train, damaged, 0, 6),
        functools.partial(evaluate, damaged),
    ):
        hosts = [batches(host_index=i, num_hosts=num_hosts) for i in range(num_hosts)]
        assert_same(map(together, zip(*hosts, strict=True)), batches())


def test_too_many_damaged_records_in_a_row_are_not_skipped(own_folder, monkeypatch):
    (shard,) = own_folder.glob("*validation*")
    generated.spoil_records(shard, dict.fromkeys((3, 4, 5), generated.no_example))
    source = open_source(own_folder.parents[1], damaged_records="skip")
    assert [intact for _, _, intact in whole(source.parts["test"])].count(False) == 3
    monkeypatch.setattr(imagenet, "MAX_SKIPPED", 2)
    message = sentence_of(list, whole(source.parts["test"]))
    assert "None of 3 records in a row of the split validation of" in message
    message = sentence_of(list, whole(source.parts["test"].take(np.array([4]))))
    assert "None of 1 records in a row" in message


def test_pictures_of_several_shapes_are_no_batch(source):
    message = sentence_of(
        next, train(source, 0, 6, train_view=lambda rng, image: image)
    )
    assert "different shapes" in message and "crop them to one shape" in message


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch size of 0 does not fit 24"),
        ({"batch_size": 25}, "batch size of 25 does not fit 24"),
        ({"num_hosts": 3}, "batch of 4 cannot be split evenly over 3 hosts"),
        ({"num_hosts": 2, "host_index": 2}, "host_index must be in 0 .. 1, not 2"),
        ({"num_workers": -1}, "num_workers must be 0 or more, not -1"),
    ],
)
def test_options_that_do_not_fit(source, options, sentence):
    with pytest.raises(InputError, match=sentence):
        train(source, 0, 1, **options)  # at once, not at the first batch
