# SPDX-License-Identifier: Apache-2.0
"""Whole runs whose data fail: worker processes that die, damaged records and files."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "data"))
sys.path.append(str(Path(__file__).parents[1] / "experiments"))

import generated
from driver import arguments, assert_same_run, in_process, lines, stop_after
from test_imagenet_runs import argv
from tiny import TINY

from rn_jax.data.imagenet import Source
from rn_jax.models import MODELS

pytestmark = [pytest.mark.slow, pytest.mark.faults]
KIND = "data"

OPTIONS = [
    "--config.model=tiny",
    "--config.steps=24",
    "--config.eval_every_steps=24",
    "--config.protocol=full",
    "--config.lr_schedule=piecewise",
    "--config.lr_drops=(20,)",
    "--config.checkpoint_every_steps=2",
    "--config.eval_crops=center",
]


@pytest.fixture(autouse=True)
def tiny_in_the_table(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TINY)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    generated.prepare_imagenet(folder, train=40, validation=9)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir):
    """A run on whole records, decoded in its own process."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(MODELS, "tiny", TINY)
        assert run(monkeypatch, workdir, data_dir) == 0
    return workdir


def run(monkeypatch, workdir, data_dir, *options, workers=0):
    """Exit code of a run."""
    workers = f"--config.num_workers={workers}"
    return in_process(monkeypatch, argv(workdir, data_dir, *OPTIONS, workers, *options))


def sentence(capfd):
    """The one that a command ends with; OpenCV says more of some pictures."""
    err = capfd.readouterr().err.splitlines()
    assert [line.startswith("rn_jax: ") for line in err].count(True) == 1, err
    assert not any("Traceback" in line for line in err)
    return err[-1]


def test_a_worker_that_is_killed_stops_the_run_which_then_goes_on(
    undisturbed, data_dir, tmp_path, monkeypatch, capfd, faults
):
    for method, after in (
        ("train_batches", 1),
        ("train_batches", 3),
        ("eval_batches", 0),
    ):
        with monkeypatch.context() as patch:
            kill_workers(patch, method, after)
            assert run(patch, tmp_path / "run", data_dir, workers=2) == 2
        said = sentence(capfd)
        assert "was killed" in said and "exit code -9" in said
        assert multiprocessing.active_children() == []
        assert not (tmp_path / "run" / "summary.json").exists()
        faults("worker process killed")
    assert run(monkeypatch, tmp_path / "run", data_dir, workers=1) == 0
    assert_same_run(tmp_path / "run", undisturbed)


def kill_workers(monkeypatch, method, after):
    """Let the workers of a feed's method die after so many batches."""
    whole = getattr(Source, method)

    def kill(others):
        while not (workers := set(multiprocessing.active_children()) - others):
            time.sleep(0.01)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)

    def batches(*args, **kwargs):
        others = set(multiprocessing.active_children())
        if after == 0:  # as they start
            threading.Thread(target=kill, args=[others]).start()
        for i, batch in enumerate(whole(*args, **kwargs), start=1):
            if i == after:
                kill(others)
            yield batch

    monkeypatch.setattr(Source, method, batches)


HOWS = {
    "flip": "flip",
    "half a picture": generated.halve_picture,
    "no example": generated.no_example,
}


@pytest.fixture
def own_folder(data_dir, tmp_path):
    """A copy of the data to spoil: the folder of the version."""
    shutil.copytree(data_dir / "imagenet2012", tmp_path / "tfds" / "imagenet2012")
    (folder,) = (tmp_path / "tfds" / "imagenet2012").iterdir()
    return folder


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_a_damaged_record_stops_the_run_which_goes_on_with_whole_files(
    undisturbed, own_folder, tmp_path, monkeypatch, capfd, faults, how, split
):
    workers = 1 if how == "flip" else 0
    (shard,) = own_folder.glob(f"*{split}*")
    whole = shard.read_bytes()
    generated.spoil_records(shard, {8: how})
    workdir, data_dir = tmp_path / "run", own_folder.parents[1]
    assert run(monkeypatch, workdir, data_dir, workers=workers) == 2
    said = sentence(capfd)
    assert f"Record 8 of the split {split} of imagenet2012 in {own_folder}" in said
    assert said.endswith("or set damaged_records=skip.")
    shard.write_bytes(whole)
    assert run(monkeypatch, workdir, data_dir, workers=workers) == 0
    assert_same_run(workdir, undisturbed)
    faults("damaged record")


def test_damaged_records_are_skipped_alike_by_any_number_of_workers(
    own_folder, undisturbed, tmp_path, monkeypatch, capfd, faults
):
    """Also where the run is stopped between, as a damaged one is being skipped."""
    for split, size in (("train", 40), ("validation", 9)):
        (shard,) = own_folder.glob(f"*{split}*")
        places = (0, size // 2, size - 1)
        generated.spoil_records(shard, dict(zip(places, HOWS.values(), strict=True)))
    data_dir, skip = own_folder.parents[1], "--config.damaged_records=skip"
    with monkeypatch.context() as patch:
        stop_after(patch, 5, Source)
        assert run(patch, tmp_path / "0", data_dir, skip) == 75
    for workers in (0, 2):
        workdir = tmp_path / str(workers)
        assert run(monkeypatch, workdir, data_dir, skip, workers=workers) == 0
        assert_same_run(workdir, tmp_path / "0")
    assert [line["step"] for line in lines(workdir)] == [
        line["step"] for line in lines(undisturbed)
    ]
    said = capfd.readouterr().err.splitlines()
    for place in (0, 4, 8):
        begin = f"Record {place} of the split validation of imagenet2012 in "
        assert any(line.startswith(begin) for line in said)
    faults("damaged record", 6)


# Data sets in memory


def on_cifar(monkeypatch, workdir, data_dir, *options):
    """Exit code of a run on the small CIFAR-10 in that folder."""
    small = [f"--config.data_dir={data_dir}", "--config.batch_size=4", *options]
    return in_process(monkeypatch, arguments(workdir, *small, dataset="cifar10"))


def truncate(shard):
    shard.write_bytes(shard.read_bytes()[:-500])


def empty(shard):
    shard.write_bytes(b"")


def overwrite(shard):
    shard.write_bytes(bytes(range(256)) * (shard.stat().st_size // 256))


@pytest.mark.parametrize("damaged_records", ["stop", "skip"])
@pytest.mark.parametrize("spoil", [truncate, empty, overwrite, Path.unlink])
def test_a_damaged_file_is_one_sentence(
    tmp_path, monkeypatch, capfd, faults, spoil, damaged_records
):
    folder = Path(generated.prepare("cifar10", tmp_path / "tfds"))
    option = f"--config.damaged_records={damaged_records}"
    for split in ("train", "test"):
        (shard,) = folder.glob(f"cifar10-{split}*")
        whole = shard.read_bytes()
        spoil(shard)
        assert on_cifar(monkeypatch, tmp_path / "run", tmp_path / "tfds", option) == 2
        said = sentence(capfd)
        assert f"cifar10 in {folder} is damaged or incomplete" in said
        assert not (tmp_path / "run").exists()
        shard.write_bytes(whole)
        faults("damaged file")


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_damaged_records_in_memory(tmp_path, monkeypatch, capfd, faults, how):
    folder = Path(generated.prepare("cifar10", tmp_path / "tfds"))
    for split in ("train", "test"):
        (shard,) = folder.glob(f"cifar10-{split}*")
        generated.spoil_records(shard, {4: how})
    workdir, data_dir = tmp_path / "run", tmp_path / "tfds"
    assert on_cifar(monkeypatch, workdir, data_dir) == 2
    assert "record 4 of the split train: " in sentence(capfd)
    assert not workdir.exists()
    option = "--config.damaged_records=skip"
    assert on_cifar(monkeypatch, workdir, data_dir, option) == 0
    said = capfd.readouterr().err.splitlines()
    for split in ("train", "test"):
        begin = f"Record 4 of the split {split} of cifar10 in {folder} is damaged ("
        assert [line.startswith(begin) for line in said].count(True) == 1
    assert lines(workdir)[-1]["step"] == 2 * (22 // 4)
    faults("damaged record", 2)
