# SPDX-License-Identifier: Apache-2.0
"""Runs in full: their files, resuming bit for bit, signals, and divergence."""

import dataclasses
import gzip
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time

import driver
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver import arguments, assert_same_run, in_process, lines, stop_after
from etils import epath
from test_events import scalars
from tiny import TINY

from experiments import reproduce, run, sweep
from experiments.config import read_config
from experiments.training import loop
from rn_jax.checkpoint import Checkpoints
from rn_jax.models import MODELS

SD = "--config.stochastic_depth={'last_survival': 0.5}"


OPTIONS = [
    SD,
    "--config.protocol=45k5k",
    "--config.epochs=6",
    "--config.checkpoint_every_steps=3",
    "--config.log_every_steps=2",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 30 steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    process = driver.start(arguments(workdir, *OPTIONS))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return workdir, out


@pytest.fixture(scope="module")
def finished_here(tmp_path_factory):
    """The same in this process, which may have more virtual devices.

    In JAX 0.8 rounding depends on their number, even where only two are used.
    """
    workdir = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY)
        assert in_process(patch, arguments(workdir, *OPTIONS)) == 0
    return workdir


def test_files_of_a_finished_run(finished):
    workdir, _ = finished
    summary = json.loads((workdir / "summary.json").read_text())
    names = """model dataset params num_blocks epochs steps seed protocol
        test_error_percent val_error_percent test_error_at_best_val_percent
        images_per_second wall_seconds versions git_revision"""
    assert set(names.split()) <= set(summary)
    given = arguments(workdir, *OPTIONS)
    assert summary["command"] == shlex.join(["python", "-m", "experiments.run", *given])
    assert (summary["epochs"], summary["steps"]) == (6, 30)  # 1,294 // 240 = 5 an epoch
    assert summary["num_blocks"] == 4
    epochs = [ln for ln in lines(workdir) if ln["kind"] == "epoch"]
    assert [ln["epoch"] for ln in epochs] == [1, 2, 3, 4, 5, 6]
    assert summary["test_error_percent"] == epochs[-1]["test_error_percent"]
    best = min(epochs, key=lambda ln: (ln["val_error_percent"], -ln["epoch"]))
    assert summary["test_error_at_best_val_percent"] == best["test_error_percent"]
    steps = [ln for ln in lines(workdir) if ln["kind"] == "step"]
    assert [ln["step"] for ln in steps] == list(range(2, 31, 2))
    for line in steps:
        assert {"train_loss", "learning_rate", "open_blocks"} <= set(line)
    assert {ln["open_blocks"] for ln in steps} > {4}  # some steps had closed blocks
    assert json.loads((workdir / "config.json").read_text())["model"] == "tiny"
    shown = scalars(workdir / "events")
    for line in epochs:
        loss = shown[line["step"], "metrics/epoch/test_loss"]
        assert loss == np.float32(line["test_loss"])
    for figure in ("learning_curves", "survival"):
        png = (workdir / f"figures/{figure}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        caption = (workdir / f"figures/{figure}.txt").read_text()
        assert caption.startswith("tiny on digits\n\n") and "epochs=6" in caption
    kept = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert kept[-1] == 30 and 2 <= len(kept) <= 3
    assert 5 * best["epoch"] in kept  # the best epoch's checkpoint


def test_figures_of_a_finished_run_are_drawn_again(finished, monkeypatch, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    argv = arguments(workdir, *OPTIONS)
    for option, made in ((None, False), ("--format=pdf", True)):
        shown = argv if option is None else [*argv, option]
        assert in_process(monkeypatch, shown) == 0
        for figure in ("learning_curves", "survival"):
            assert (workdir / f"figures/{figure}.pdf").exists() == made
    (workdir / "figures/survival.json").unlink()  # as in runs of earlier versions
    assert in_process(monkeypatch, [*argv, "--width=3.3"]) == 0


def test_metrics_hold_no_clock_and_timing_does(finished):
    workdir, _ = finished
    for line in lines(workdir):
        assert not [name for name in line if "second" in name or "memory" in name]
    wall = [ln["wall_seconds"] for ln in lines(workdir, "timing.jsonl")]
    assert wall == sorted(wall) and wall[0] > 0
    for line in lines(workdir, "timing.jsonl")[1:]:
        p50, p90, p99 = (line[f"step_seconds_p{p}"] for p in (50, 90, 99))
        assert 0 < p50 <= p90 <= p99
        assert line["data_wait_seconds"] >= 0 and line["peak_memory_mib"] > 0


def test_output_without_a_terminal_is_plain_lines(finished):
    workdir, out = finished
    printed = out.splitlines()
    assert printed[:2] == [
        f"Run folder: {workdir}",
        "Compiling the training step ...",
    ]
    assert [ln.split(":")[0] for ln in printed[2:8]] == [
        f"epoch {i}" for i in range(1, 7)
    ]
    assert re.fullmatch(
        r"Test error [\d.]+ %, [\d.]+ % at the best validation epoch\.",
        printed[8],
    )
    assert "\r" not in out


def test_finished_run_is_not_trained_again(finished, monkeypatch, capsys):
    workdir, _ = finished
    before = lines(workdir)
    assert in_process(monkeypatch, arguments(workdir, *OPTIONS)) == 0
    assert "holds the finished run" in capsys.readouterr().out
    assert lines(workdir) == before


def wait_for_step(workdir, process, step):
    """Returns once a checkpoint of at least that step is there."""
    deadline = time.time() + 240
    while time.time() < deadline and process.poll() is None:
        folder = workdir / "checkpoints"
        names = [p.name for p in folder.iterdir()] if folder.exists() else []
        if any(name.isdigit() and int(name) >= step for name in names):
            return
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint {step}: {process.communicate()}")


@pytest.mark.slow
def test_killed_and_started_again_ends_the_same_bit_for_bit(finished, tmp_path):
    """Once, after a checkpoint within an epoch; tests/faults has fifty times."""
    workdir = tmp_path / "killed"
    process = driver.start(arguments(workdir, *OPTIONS))
    wait_for_step(workdir, process, 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (workdir / "summary.json").exists()
    process = driver.start(arguments(workdir, *OPTIONS))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert re.search(r"Resumed at step (\d+) of 30\.", out)
    assert_same_run(workdir, finished[0])


@pytest.mark.slow
def test_trace_of_some_steps(tmp_path, monkeypatch, capsys):
    argv = [*arguments(tmp_path, "--config.epochs=1"), "--profile=2"]
    assert in_process(monkeypatch, argv) == 0
    assert f"Trace of 2 steps: {tmp_path}/profile" in capsys.readouterr().out
    (folder,) = (tmp_path / "profile/plugins/profile").iterdir()
    assert list(folder.glob("*.xplane.pb"))  # for TensorBoard
    with gzip.open(folder / "perfetto_trace.json.gz") as file:
        assert len(json.load(file)["traceEvents"]) > 100


@pytest.mark.slow
def test_damaged_newest_checkpoint_is_said_and_the_run_ends_the_same(
    finished, tmp_path, monkeypatch, capsys
):
    """Damaged where an earlier one exists, after a run that was stopped."""
    workdir = tmp_path / "damaged"
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        assert in_process(monkeypatch, arguments(workdir, *OPTIONS)) == 75
    stopped = "Stopped by SIGTERM and saved at step 9 of 30; the same command"
    assert stopped in capsys.readouterr().err
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert newest == 9
    for file in (workdir / f"checkpoints/{newest}/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    capsys.readouterr()
    assert in_process(monkeypatch, arguments(workdir, *OPTIONS)) == 0
    out = capsys.readouterr().out
    assert "The checkpoint of step 9 is damaged; trying the one before." in out
    assert re.search(r"Resumed at step 6 of 30\.", out)
    assert_same_run(workdir, finished[0])


@pytest.mark.parametrize(
    "mode", ["pmap", pytest.param("shard_map", marks=pytest.mark.slow)]
)
def test_examples_on_the_devices_give_the_same_run(
    finished_here, tmp_path, monkeypatch, mode
):
    """Stopped within an epoch and resumed, with no transfer that is not asked for."""
    options = [*OPTIONS, "--config.data_on_device=True", f"--config.parallelism={mode}"]
    argv = arguments(tmp_path / "w", *options)
    # All that a step does, but not what is done now and then.
    rare = ("_evaluate", "_save")
    for name in ("train", *rare):
        guard = jax.transfer_guard("allow" if name in rare else "disallow")
        monkeypatch.setattr(loop._Run, name, guard(getattr(loop._Run, name)))
    with monkeypatch.context() as patch:
        stop_after(patch, 8, method="train_orders")
        assert in_process(monkeypatch, argv) == 75
    assert in_process(monkeypatch, argv) == 0
    assert_same_run(tmp_path / "w", finished_here)


def test_metrics_are_fetched_in_bursts(tmp_path, monkeypatch):
    """A transfer guard does not see a CPU's fetches, so they are counted."""
    callers, arrays = [], []

    def watch(owner, name):
        whole = getattr(owner, name)

        def watched(*args, **kwargs):
            frame = sys._getframe(1)
            while frame and frame.f_code.co_filename != loop.__file__:
                frame = frame.f_back
            callers.append((name, frame and frame.f_code.co_name))
            if callers[-1] == ("device_get", "_fetch"):
                arrays.append(len(jax.tree.leaves(args)) - len(args[0]))
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for name in ("__float__", "__array__"):
        watch(type(jnp.zeros(())), name)
    watch(jax, "device_get")
    monkeypatch.setattr(loop, "_MOST_SECONDS", math.inf)
    options = [SD, "--config.epochs=6", "--config.log_every_steps=10"]
    assert in_process(monkeypatch, arguments(tmp_path / "run", *options)) == 0
    steps = lines(tmp_path / "run")[-1]["step"]
    assert not {"train", "_await", "_should_fetch"} & {by for _, by in callers}
    # Once for a logged step, twice for an evaluation, which saves a checkpoint.
    assert 0 < len(arrays) <= steps // 10 + 2 * 6 < steps
    # Three for each step, and four more for a logged one and the last one fetched.
    assert 3 * steps < sum(arrays) <= 3 * steps + 4 * len(arrays)


@pytest.mark.parametrize(
    "what", ["loss", pytest.param("gradient", marks=pytest.mark.slow)]
)
def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, capsys, what
):
    workdir = tmp_path / "nan"
    argv = arguments(workdir, "--config.checkpoint_every_steps=2")
    build = loop.build

    def spoiled(config, **kept):
        experiment = build(config, **kept)

        def step(state, batch, key):
            state, sums = experiment.train_step(state, batch, key)
            if int(state.step) == 5:
                spoiled = {"loss": "loss", "gradient": "grad_norm"}[what]
                sums = {**sums, spoiled: jnp.float32(math.nan)}
            return state, sums

        return dataclasses.replace(experiment, train_step=step)

    monkeypatch.setattr(loop, "build", spoiled)
    assert in_process(monkeypatch, argv) == 2
    err = capsys.readouterr().err
    assert "not finite at step 5 (learning rate 0.01)" in err
    assert "the last good checkpoint, of step 4, is kept" in err
    checkpoints = Checkpoints(workdir / "checkpoints")
    assert checkpoints.latest_step() == 4
    checkpoints.close()
    noted = json.loads((workdir / "diverged.json").read_text())
    assert noted["steps"] == 5 and noted["reason"] in err
    assert noted["model"] == "tiny" and "summary.json" not in os.listdir(workdir)

    monkeypatch.setattr(loop, "build", build)  # and it trains
    assert in_process(monkeypatch, argv) == 0
    assert {"summary.json"} == {"summary.json", "diverged.json"} & {
        *os.listdir(workdir)
    }


def test_state_that_is_not_finite_is_not_saved(tmp_path, monkeypatch, capsys):
    """The first step's loss is finite; the parameters after it are not."""
    options = ["--config.checkpoint_every_steps=1", "--config.learning_rate=1e20"]
    options += ["--config.weight_decay=1e30"]
    assert in_process(monkeypatch, arguments(tmp_path / "w", *options)) == 2
    err = capsys.readouterr().err
    assert re.search(r"not finite at step [12] .*there is no checkpoint yet", err), err


@pytest.mark.slow
def test_other_settings_reach_the_end_within_an_epoch(tmp_path, monkeypatch):
    """bfloat16, one device, fewer evaluations, and a length in steps."""
    options = [
        "--config.dtype=bfloat16",
        "--config.num_devices=1",
        "--config.batch_norm=device",
        "--config.eval_every_epochs=2",
        "--config.epochs=9",
        "--config.steps=13",
        "--config.stochastic_depth={'preset': 'timm'}",
    ]
    assert in_process(monkeypatch, arguments(tmp_path / "w", *options)) == 0
    epochs = [ln for ln in lines(tmp_path / "w") if ln["kind"] == "epoch"]
    assert [ln["step"] for ln in epochs] == [10, 13]
    summary = json.loads((tmp_path / "w/summary.json").read_text())
    assert (summary["steps"], summary["epochs"]) == (13, 2.6)


@pytest.mark.slow
def test_bar_on_a_terminal_shows_epoch_loss_error_speed_and_time_left(tmp_path):
    import pty
    import subprocess
    import sys
    import termios

    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    argv = arguments(tmp_path / "w", "--config.epochs=9")
    process = subprocess.Popen(
        [sys.executable, "-c", driver.PROGRAM, *argv],
        cwd=driver.ROOT,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += (piece := os.read(master, 4096))
        except OSError:  # the other end is closed
            break
        if not piece:
            break
    assert process.wait() == 0
    text = shown.decode(errors="replace")
    # A rate needs two moments; the first epochs may be over before.
    assert re.search(r"epoch \d:.*loss \d\.\d+, error [\d.]+ %, \d+ images/s", text)
    assert re.search(r"\d\d:\d\d<\d\d:\d\d", text)  # spent and left


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_resnet110_with_stochastic_depth_learns_digits(tmp_path, monkeypatch):
    """What `make demo` trains, in half of its epochs: 5 % or less on 360 images."""
    argv = [f"--config={driver.ROOT}/configs/resnet110_sd.py:digits"]
    argv += [f"--workdir={tmp_path / 'w'}", "--config.num_devices=2"]
    argv += ["--config.epochs=15"]
    assert in_process(monkeypatch, argv) == 0
    summary = json.loads((tmp_path / "w/summary.json").read_text())
    assert summary["test_error_percent"] <= 5
    assert summary["params"] == 1_727_962 - 2 * 16 * 9  # one channel instead of three


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_vgg15_learns_digits(tmp_path, monkeypatch):
    """In 8 of its 30 epochs, to far below chance, which is 90 %."""
    argv = [f"--config={driver.ROOT}/configs/vgg15.py:digits"]
    argv += [f"--workdir={tmp_path / 'w'}", "--config.num_devices=2"]
    argv += ["--config.epochs=8", "--config.eval_every_epochs=8"]
    assert in_process(monkeypatch, argv) == 0
    summary = json.loads((tmp_path / "w/summary.json").read_text())
    assert summary["test_error_percent"] <= 40


def test_workdir_of_another_config_is_left_as_it_is(finished, monkeypatch, capsys):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    options = [*OPTIONS, "--config.seed=1", "--config.learning_rate=0.5"]
    assert in_process(monkeypatch, arguments(workdir, *options)) == 2
    err = capsys.readouterr().err
    assert "learning_rate 0.01 there and 0.5 here, seed 0 there and 1 here" in err
    assert (workdir / "config.json").read_text() == before


def test_run_of_a_version_without_a_field_goes_on_as_it_began(
    finished, tmp_path, monkeypatch, capsys
):
    """Its velocity is that of Torch's form; the same recipe may have Caffe's now."""
    old = tmp_path / "old"
    shutil.copytree(finished[0], old)
    config = json.loads((old / "config.json").read_text())
    assert config.pop("momentum_form") == "torch"
    (old / "config.json").write_text(json.dumps(config))
    assert read_config(epath.Path(old)).momentum_form == "torch"
    (old / "summary.json").unlink()
    options = [*OPTIONS, "--config.momentum_form=caffe"]
    assert in_process(monkeypatch, arguments(old, *options)) == 0
    out = capsys.readouterr().out
    assert "continues with momentum_form=torch." in out and "Resumed at step 30" in out
    assert_same_run(old, finished[0])
    # And again, by the same command: its config is as it was.
    assert json.loads((old / "config.json").read_text()) == config
    assert in_process(monkeypatch, arguments(old, *options)) == 0
    assert "holds the finished run" in capsys.readouterr().out
    # A run of this version has the field, and does not change its form.
    assert in_process(monkeypatch, arguments(finished[0], *options)) == 2
    assert "momentum_form 'torch' there and 'caffe' here" in capsys.readouterr().err


def test_in_a_thread_signals_stay_the_program_s_own(tmp_path, monkeypatch, capsys):
    """As a notebook's server, Ray or a window calls it, and with its own arguments."""
    monkeypatch.setattr(sys, "argv", ["another program", "--its", "arguments"])
    argv, codes = arguments(tmp_path / "run"), []
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def call():
        codes.append(run.main(argv))
        codes.append(run.main(["--seeds=x", *argv]))
        codes.append(sweep.main([*argv, "--grid", "config.seed=x"]))
        codes.append(reproduce.main(["--table=x"]))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert codes == [0, 2, 2, 2]
    assert "--its" not in capsys.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert lines(tmp_path / "run")[-1]["step"] == 10


def test_handler_that_is_not_python_s_is_left_alone(monkeypatch):
    """Python tells none, and could not put it back."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    set_to = []
    monkeypatch.setattr(signal, "signal", lambda *arguments: set_to.append(arguments))
    with loop.StopSignal() as stop:
        assert not stop
    assert not set_to
