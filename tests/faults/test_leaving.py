# SPDX-License-Identifier: Apache-2.0
"""Signals while a command starts and compiles: it ends at once, and nothing is lost."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from driver import ROOT, arguments, assert_same_run

from experiments import cli

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc"),
]

# Seconds within which a process must end after a signal, on a machine that is busy.
AT_ONCE = 30
KIND = "signal while starting or compiling"
CONFIG = [
    "--config=configs/resnet20.py:digits",
    "--config.model_kwargs.stage_sizes=(1,1,1)",
    "--config.batch_size=240",
    "--config.num_devices=1",
]


def start(name, *argv):
    """A command in a process of its own, once Python has begun to import."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not handles(process.pid, signal.SIGTERM):
        time.sleep(0.001)
    return process


def handles(pid, number):
    """Whether a process has a handler of a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = [line for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def stop(process, number):
    """The exit code of a process after a signal, and what it printed."""
    process.send_signal(number)
    out, err = process.communicate(timeout=AT_ONCE)
    return process.returncode, out, err


def assert_left(code, err):
    assert code == 75, err
    assert err.startswith("rn_jax: ") and err.count("\n") == 1, err
    assert err.endswith(".\n")


def assert_whole(folder):
    """Every file of a command is as it was written, and its lock is released."""
    for file in folder.rglob("*.json"):
        json.loads(file.read_bytes())
    for file in folder.rglob("*.jsonl"):
        assert not file.read_bytes().strip() or file.read_bytes().endswith(b"\n")
    assert not list(folder.rglob("lock.json"))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_while_it_imports(name, faults):
    number = [signal.SIGINT, signal.SIGTERM][len(name) % 2]
    code, out, err = stop(start(name, "--help"), number)
    assert_left(code, err)
    assert (out, err) == ("", "rn_jax: Interrupted before the command began.\n")
    faults(KIND)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_while_it_compiles_a_step(server, tmp_path, faults, number):
    """XLA compiles in C++, where Python handles no signal."""
    folder = tmp_path / "run"
    # A step that no cache has; the programs before it come from the tests' cache.
    new = f"--config.weight_decay={1e-4 + time.time_ns() % 10**6 * 1e-12}"
    run = server.start(arguments(folder, "--config.num_devices=1", new))
    until = time.monotonic() + 240
    while "Compiling the training step ...\n" not in run.out:
        assert time.monotonic() < until, run.err
        time.sleep(0.01)
    assert handles(run.pid, number)
    time.sleep(0.1)
    began = time.monotonic()
    run.signal(number)
    assert_left(run.wait(), run.err)
    assert time.monotonic() < began + AT_ONCE
    assert f"the same command with --workdir={folder} resumes from there" in run.err
    assert_whole(folder)
    faults(KIND)


def test_a_second_command_of_a_process_can_be_ended_too():
    """And says so while stderr is redirected, as when a checkpoint is read."""
    program = """
import contextlib, io, os, signal
from rn_jax import leaving
leaving.watch()
leaving.ended()
os.kill(os.getpid(), signal.SIGTERM)  # ignored
leaving.watch()
with leaving.saying("It ended."), contextlib.redirect_stderr(io.StringIO()):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (75, "rn_jax: It ended.\n")


def test_second_signal_ends_what_holds_the_first(tmp_path, faults):
    """As an evaluation that XLA compiles; two at once, as by `timeout`, are one."""
    program = """
import pathlib, sys, time
from rn_jax import leaving
leaving.watch()
leaving.HOLDERS.add("an evaluation")
leaving.AT_END.add(pathlib.Path(sys.argv[1]).touch)
with leaving.saying("It ended."):
    print("ready", flush=True)
    time.sleep(600)
"""
    held = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "ended"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert held.stdout.readline() == "ready\n"
    for _ in range(2):
        held.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        held.wait(timeout=1.5)
    assert stop(held, signal.SIGINT) == (75, "", "rn_jax: It ended.\n")
    assert (tmp_path / "ended").exists()
    faults(KIND)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nothing disturbed, and its seconds with all imports."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    process = start("run", *COMMANDS["run"][1], *places(folder, folder / "run"))
    _, err = process.communicate()
    assert process.returncode == 0, err
    return folder, time.monotonic() - began


@pytest.fixture(scope="module")
def on_imagenet(tmp_path_factory):
    """The folder of a finished run on a small imagenet2012, which evaluate takes."""
    pytest.importorskip("grain")
    sys.path.insert(0, str(ROOT / "tests" / "data"))
    folder = tmp_path_factory.mktemp("imagenet")
    generated = importlib.import_module("generated")
    generated.prepare_imagenet(folder / "data", train=40, validation=9)
    fields = {
        **{"image_size": 32, "train_scales": (32, 40), "batch_norm_examples": 8},
        **{"eval_resize": 36, "eval_size": 32, "eval_crops": "ten"},
        **{"batch_size": 4, "eval_batch_size": 4, "steps": 2, "eval_every_steps": 2},
        **{"num_devices": 1, "num_workers": 0, "data_dir": folder / "data"},
        "model_kwargs.stage_sizes": (1, 1, 1, 1),
    }
    argv = [f"--config.{name}={value}" for name, value in fields.items()]
    where = places(folder, folder / "run")
    process = start("run", "--config=configs/resnet18.py", *argv, *where)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return folder


def places(folder, workdir):
    return f"--config.compilation_cache={folder}/cache", f"--workdir={workdir}"


# The numbers of stops, which are 50 in all, and the options.
COMMANDS = {
    "run": (18, [*CONFIG, "--config.epochs=2"]),
    "sweep": (
        10,
        [*CONFIG, "--config.epochs=1", "--grid", "config.learning_rate=0.1,0.2"],
    ),
    "reproduce": (
        8,
        ["--table=digits", "--only=plain20,resnet20", "--scale=0.01", *CONFIG[1:]],
    ),
    "analyze": (8, ["--study=delete_one", "--images=100"]),
    "evaluate": (6, ["--crops=ten", "--num_workers=0", "--batch_size=4"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_stopped_at_random_moments_it_resumes(
    name, request, finished, tmp_path, faults
):
    """Each time with an empty cache of programs, so that all are compiled again."""
    stops, argv = COMMANDS[name]
    whole, seconds = finished
    if name == "evaluate":
        whole = request.getfixturevalue("on_imagenet")
    rng = np.random.default_rng(len(name))
    done, folders = 0, [tmp_path / "0"]
    while True:
        where = places(whole, folders[-1])
        if name == "analyze":
            where = (f"--workdir={whole / 'run'}", f"--out={folders[-1]}")
        if name == "evaluate":
            where = (f"--workdir={whole / 'run'}",)
        shutil.rmtree(whole / "cache", ignore_errors=True)
        process = start(name, *argv, *where)
        if done < stops:
            time.sleep(rng.uniform(0, 0.9) * seconds)
            number = [signal.SIGINT, signal.SIGTERM][done % 2]
            code, out, err = stop(process, number)
        else:  # it is left alone at last
            out, err = process.communicate()
            code = process.returncode
        assert_whole(folders[-1])
        if code == 75:
            assert_left(code, err)
            faults(KIND)
            done += 1
            continue
        assert (code, err) == (0, ""), out
        if name == "run":
            assert_same_run(folders[-1], whole / "run")
        if done == stops:
            break
        folders.append(tmp_path / str(len(folders)))
