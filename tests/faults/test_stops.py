# SPDX-License-Identifier: Apache-2.0
"""Signals, full disks, and folders in use: the run stops, says so, and goes on."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from damage import fill_with_zeros, remove_half, truncate
from driver import PROGRAM, ROOT, arguments, assert_same_run, in_process
from tiny import TINY

from rn_jax.checkpoint import Checkpoints
from rn_jax.models import MODELS

pytestmark = [pytest.mark.slow, pytest.mark.faults]

OPTIONS = (
    "--config.epochs=6",
    "--config.num_devices=1",
    "--config.checkpoint_every_steps=2",
    "--config.log_every_steps=1",
)


def argv(workdir, *options):
    return arguments(workdir, *OPTIONS, *options)


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "whole"
    run = server.run(argv(workdir))
    assert run.code == 0, run.err
    return workdir


def checkpoints(workdir):
    folder = workdir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def stopped(server, workdir, number, after=4):
    """A run that had a signal once there was a checkpoint of a step, or was beyond."""
    run = server.start(argv(workdir))
    deadline = time.monotonic() + 240
    while not [s for s in checkpoints(workdir) if s >= after]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.signal(number)
    run.wait()
    return run


def goes_on_as_if_nothing_had_happened(server, workdir, whole):
    run = server.run(argv(workdir))
    assert run.code == 0, run.err
    assert re.search(r"Resumed at step \d+ of 30\.", run.out)
    assert_same_run(workdir, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_signal_saves_at_the_current_step(server, whole, tmp_path, faults, number):
    workdir = tmp_path / "run"
    run = stopped(server, workdir, number)
    assert run.code == 75
    said = re.fullmatch(
        rf"rn_jax: Stopped by {number.name} and saved at step (\d+) of 30; the same "
        rf"command with --workdir={workdir} resumes from there\.\n",
        run.err,
    )
    assert checkpoints(workdir)[-1] == int(said[1])
    assert not (workdir / "lock.json").exists()
    goes_on_as_if_nothing_had_happened(server, workdir, whole)
    faults(number.name)


def test_second_signals_while_it_saves(
    server, whole, tmp_path, faults, monkeypatch, capsys
):
    """Before, in and after what writes the checkpoint that the first one asked for."""
    workdir = tmp_path / "run"
    save, wait = Checkpoints.save, Checkpoints.wait

    def again():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    def saving(checkpoints, state, *arguments, **keywords):
        if int(state.step) == 8:  # which is saved in any case
            again()
        save(checkpoints, state, *arguments, **keywords)
        if int(state.step) == 8:
            again()

    def waiting(checkpoints):
        again()
        wait(checkpoints)
        again()

    with monkeypatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY)
        patch.setattr(Checkpoints, "save", saving)
        patch.setattr(Checkpoints, "wait", waiting)
        assert in_process(patch, argv(workdir)) == 75
    assert "saved at step 8 of 30" in capsys.readouterr().err
    assert checkpoints(workdir)[-1] == 8
    goes_on_as_if_nothing_had_happened(server, workdir, whole)
    faults("second signal while it saves", 6)


@pytest.mark.parametrize("what", ["checkpoint", "metrics"])
def test_no_room_for_a_file(server, whole, tmp_path, faults, what):
    """By a limit on the size of files, of which the kernel tells as of a full disk."""
    workdir = tmp_path / "run"
    stopped(server, workdir, signal.SIGTERM, after=12)
    before = checkpoints(workdir)
    limit = (workdir / "metrics.jsonl").stat().st_size  # which has outgrown config.json
    limit += 1_500 if what == "checkpoint" else 50
    run = server.run(argv(workdir), file_size=limit)
    assert run.code == 2
    sentence = {
        "checkpoint": rf"rn_jax: A checkpoint cannot be written to {workdir}/check"
        rf"points \(.*\); step {before[-1]} is kept\. Make room there, and continue "
        r"with the same command\.\n",
        "metrics": rf"rn_jax: {workdir} cannot be written to \(.*\)\. Checkpoints "
        r"are kept: make room, and the same command resumes the run\.\n",
    }[what]
    assert re.fullmatch(sentence, run.err), run.err
    assert checkpoints(workdir)[-1] == before[-1]
    goes_on_as_if_nothing_had_happened(server, workdir, whole)
    faults(f"no room for {what}")


def test_disk_is_full(server, whole, tmp_path, faults):
    """A file system of a megabyte, which only the run sees, and which is copied out."""
    place, copy = tmp_path / "place", tmp_path / "copy"
    place.mkdir()
    script = """
        mount -t tmpfs -o size=1m tmpfs "$1" || exit 77
        python="$2"; place="$1"; copy="$3"; shift 3
        "$python" "$@"; code=$?
        rm -f "$place/filler"; cp -r "$place" "$copy"; exit $code
    """
    # Once there is a checkpoint, somebody else takes all the room that is left.
    filler = """
import glob, sys, threading, time

def fill(place):
    while not glob.glob(f"{place}/run/checkpoints/[0-9]"):
        time.sleep(0.01)
    with open(f"{place}/filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass

threading.Thread(target=fill, args=[sys.argv.pop(1)], daemon=True).start()
"""
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount"),
            *("bash", "-c", script, "bash", place, sys.executable, copy),
            *("-c", filler + PROGRAM, place, *argv(place / "run")),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.returncode == 2, done.stderr
    # By whichever file met it first: Orbax's own, or one of TensorStore's.
    full = "No space left|RESOURCE_EXHAUSTED"
    assert re.match(rf"rn_jax: .*cannot be written to.*({full})", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert checkpoints(copy / "run")
    goes_on_as_if_nothing_had_happened(server, copy / "run", whole)
    faults("disk full")


def test_folder_in_use_is_refused(server, whole, tmp_path, faults, monkeypatch, capsys):
    """The first one is held still meanwhile, so that it does not end too early."""
    workdir = tmp_path / "run"
    run = server.start(argv(workdir))
    deadline = time.monotonic() + 240
    while not (workdir / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.signal(signal.SIGSTOP)
    monkeypatch.setitem(MODELS, "tiny", TINY)
    assert in_process(monkeypatch, argv(workdir)) == 2
    assert f"{workdir} is in use by process {run.pid} on " in capsys.readouterr().err
    run.signal(signal.SIGCONT)
    assert run.wait() == 0, run.err
    assert_same_run(workdir, whole)
    faults("two runs in a folder")


def test_lock_of_a_dead_process_is_taken_over(server, whole, tmp_path, faults):
    workdir = tmp_path / "run"
    stopped(server, workdir, signal.SIGKILL)
    assert json.loads((workdir / "lock.json").read_text())["process"]
    run = server.run(argv(workdir))
    assert run.code == 0, run.err
    assert re.search(
        r"Took over the lock of process \d+ on .*, which has ended\.", run.out
    )
    assert_same_run(workdir, whole)
    faults("stale lock")


@pytest.mark.parametrize(
    "damage", [truncate, fill_with_zeros, remove_half], ids=lambda f: f.__name__
)
def test_newest_checkpoint_is_damaged(server, whole, tmp_path, faults, damage):
    workdir = tmp_path / "run"
    stopped(server, workdir, signal.SIGTERM)
    newest = checkpoints(workdir)[-1]
    files = sorted(workdir.glob(f"checkpoints/{newest}/state/**/*"))
    damage([file for file in files if file.is_file()])
    run = server.run(argv(workdir))
    assert run.code == 0, run.err
    said = f"The checkpoint of step {newest} is damaged; trying the one before."
    assert said in run.out
    assert_same_run(workdir, whole)
    faults("damaged checkpoint")


def test_damaged_config_is_refused(server, whole, tmp_path, faults):
    workdir = tmp_path / "run"
    stopped(server, workdir, signal.SIGTERM)
    os.truncate(workdir / "config.json", 100)
    run = server.run(argv(workdir))
    assert run.code == 2
    assert f"{workdir}/config.json is damaged: it contains no JSON dict" in run.err
    shutil.copy(whole / "config.json", workdir)
    goes_on_as_if_nothing_had_happened(server, workdir, whole)
    faults("damaged config")


def test_checkpoint_of_another_network_is_refused_with_what_differs(
    server, whole, tmp_path, faults, monkeypatch, capsys
):
    """A user's own network, changed under the same name."""
    workdir = tmp_path / "run"
    stopped(server, workdir, signal.SIGTERM)
    arguments = {**TINY.arguments, "features": (8, 24)}
    wider = dataclasses.replace(TINY, arguments=arguments)
    monkeypatch.setitem(MODELS, "tiny", wider)
    assert in_process(monkeypatch, argv(workdir)) == 2
    err = capsys.readouterr().err
    assert re.search(
        r"The checkpoint of step \d+ in .* belongs to another network: \S+ is "
        r"float32\[.*16.*\] there and float32\[.*24.*\] here, and \d+ more differ\.",
        err,
    ), err
    goes_on_as_if_nothing_had_happened(server, workdir, whole)
    faults("another network")


def test_loss_is_not_finite(server, tmp_path, faults):
    workdir = tmp_path / "run"
    run = server.run(argv(workdir, "--config.learning_rate=1e20"))
    assert run.code == 2
    assert re.search(r"not finite at step \d+ \(learning rate 1e\+20\)", run.err)
    faults("not finite")
