# SPDX-License-Identifier: Apache-2.0
"""Runs in parallel for a limited time: which begin, and when they stop."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import fake
import pytest
from driver import CACHE, ROOT

import configs
from experiments.config import make_config
from experiments.training import loop, many_runs, within_budget
from experiments.training.within_budget import Progress, to_begin
from experiments.training.workdir import Workdir
from rn_jax import InputError

NEW = Progress("not begun", 0, 64_000, None)
LONG = Progress("unfinished", 32_000, 64_000, 0.01)  # 320 s left
SHORT = Progress("unfinished", 62_000, 64_000, 0.01)  # 20 s left, 60 s with its start


@pytest.mark.parametrize(
    "left, places, names",
    [
        (580, 3, ["new", "long", "short"]),
        (580, 2, ["new", "long"]),
        (580, 0, []),
        (120, 3, ["new", "long", "short"]),  # a fifth of the budget
        (119, 3, ["short"]),
        (60, 1, ["short"]),
        (59, 3, []),
    ],
)
def test_a_run_begins_if_its_turn_is_worth_it(left, places, names):
    waiting = {"new": NEW, "long": LONG, "short": SHORT}
    assert to_begin(waiting, budget=600, left=left, places=places) == names


def jobs_of(*names):
    config = make_config(configs.get_config("resnet20", "digits"))
    return [many_runs.Job(name, config) for name in names]


def test_the_time_left_is_predicted_from_measured_steps(tmp_path):
    """30 epochs of 22 steps: 560 after step 100, of 20 ms and 0.6 s / 100 each."""
    [job] = jobs_of("a")
    assert within_budget.progress(job, str(tmp_path)) == ("not begun", 0, 660, None)
    workdir = Workdir(tmp_path / "a", job.config)
    workdir.open()
    workdir.resume_at(0)
    for step, seconds, more in [
        (44, 0.01, {"eval_seconds": 0.4}),
        (88, 0.02, {"eval_seconds": 0.2}),
        (100, None, {}),  # no step was timed
    ]:
        line = {"step": step, "step_seconds_p50": seconds, **more}
        workdir.log("timing", line)
    workdir.close()
    found = within_budget.progress(job, str(tmp_path))
    assert found[:3] == ("unfinished", 100, 660)
    assert found.seconds_left == pytest.approx(560 * (0.02 + 0.6 / 100))
    assert within_budget.describe(found) == (
        "step 100 of 660, 26.00 ms a step, predicted to take 15 s more."
    )


class World:
    """A clock that moves when somebody sleeps, and runs that take a known time.

    Attributes:
        events: (time, what, name) in order.
        reports: the results that were reported.
        now: seconds.
    """

    def __init__(self, path, seconds, *, saving=3.0, codes=(), at=()):
        self.path, self.seconds, self.saving = str(path), seconds, saving
        self.codes, self.at = dict(codes), dict(at)
        self.now, self.events, self.reports = 0.0, [], []

    def sleep(self, seconds):
        self.now += seconds
        for when in [when for when in self.at if when <= self.now]:
            self.at.pop(when)()

    def note(self, what, name):
        self.events.append((round(self.now), what, name))

    def train(self, **options):
        options = {"budget": 600, "at_once": 2, **options}
        within_budget.train(
            jobs_of(*self.seconds),
            self.path,
            command="a command",
            report=self.reports.append,
            at_end=lambda: self.note("kept", ""),
            start=lambda job: Run(self, job),
            clock=lambda: self.now,
            sleep=self.sleep,
            **options,
        )


class Run:
    """A process: it ends after its time, or `saving` seconds after SIGTERM."""

    def __init__(self, world, job):
        self.world, self.job = world, job
        self.ends = world.now + world.seconds[job.name]
        self.code = world.codes.get(job.name, 0)
        self.ended = False
        world.note("begin", job.name)

    @property
    def exitcode(self):
        if self.world.now < self.ends:
            return None
        if not self.ended:
            self.ended = True
            self.world.note("end", self.job.name)
            if self.code == 0:
                [(folder, config)] = many_runs.runs(self.job, self.world.path, None)
                loop.train(config, folder)  # the fake one, which ends at once
        return self.code

    def terminate(self):
        self.world.note("terminate", self.job.name)
        self.ends, self.code = self.world.now + self.world.saving, 75

    def kill(self):
        self.world.note("kill", self.job.name)


def test_it_stops_in_time_and_continues(tmp_path, monkeypatch, capsys):
    fake.use(monkeypatch)
    seconds = {"a": 100, "b": 1000, "c": 50, "d": 1000, "e": 10}
    world = World(tmp_path, seconds)
    world.train()
    assert [event for event in world.events if event[1] != "end"] == [
        *((0, "begin", "a"), (0, "begin", "b"), (100, "begin", "c")),
        *((150, "begin", "d"), (580, "terminate", "b"), (580, "terminate", "d")),
        (583, "kept", ""),
    ]
    assert [result["state"] for result in world.reports[-1]] == [
        *("finished", "not begun", "finished", "not begun", "not begun")
    ]
    printed = capsys.readouterr().out
    says = "e did not begin: it needs 120 s, and no place was free while that much was "
    assert f"{says}left." in printed
    assert re.search(r"\| a \| finished \|.*\n\| b \| not begun \|", printed)

    again = World(tmp_path, {**seconds, "b": 100})
    again.train()
    begun = [event for event in again.events if event[1] == "begin"]
    assert begun == [(0, "begin", "b"), (0, "begin", "d"), (100, "begin", "e")]


def test_a_run_that_does_not_save_in_time_is_killed(tmp_path, monkeypatch, capsys):
    fake.use(monkeypatch)
    world = World(tmp_path, {"a": 1000}, saving=100.0)
    world.train()
    assert [e[1:] for e in world.events[-2:]] == [("kill", "a"), ("kept", "")]
    assert 598 < world.now < 600
    assert "a did not end in time and is killed" in capsys.readouterr().out


def test_a_signal_stops_all(tmp_path, monkeypatch):
    fake.use(monkeypatch)
    at = {50: lambda: signal.raise_signal(signal.SIGTERM)}
    world = World(tmp_path, {"a": 1000, "b": 1000, "c": 1000}, at=at)
    with pytest.raises(loop.StoppedError, match="Stopped by SIGTERM and saved"):
        world.train()
    assert [event[1:] for event in world.events] == [
        *(("begin", "a"), ("begin", "b"), ("terminate", "a"), ("terminate", "b")),
        *(("end", "a"), ("end", "b"), ("kept", "")),
    ]
    assert world.now < 60


def test_a_failure_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    fake.use(monkeypatch)
    seconds = {"a": 10, "b": 100, "c": 10}
    world = World(tmp_path, seconds, codes={"a": 2})
    with pytest.raises(InputError, match=r"These runs failed.*: \S+/a\.log\."):
        world.train()
    assert [e[2] for e in world.events if e[1] == "end"] == ["a", "c", "b"]


def test_a_run_that_a_signal_ended_has_not_failed(tmp_path):
    """As one that is stopped while it compiles."""
    world = World(tmp_path, {"a": 10}, codes={"a": -signal.SIGTERM})
    world.train()
    assert world.events[-1][1] == "kept"


def test_a_run_that_diverged_is_not_started_again(tmp_path, monkeypatch):
    fake.use(monkeypatch, at=1, ends=loop.NotFiniteError("Not finite at step 3."))
    [job] = jobs_of("a")
    with pytest.raises(loop.NotFiniteError):
        loop.train(job.config, tmp_path / "a")
    world = World(tmp_path, {"a": 10, "b": 10})
    world.train()
    assert [event[2] for event in world.events if event[1] == "begin"] == ["b"]


def test_without_time_what_is_there_is_collected(tmp_path):
    world = World(tmp_path, {"a": 10})
    world.train(budget=0)
    assert world.events == [(0, "kept", "")] and len(world.reports) == 2


def test_no_process_takes_the_memory_of_a_gpu_in_advance(tmp_path, monkeypatch):
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.setenv(name, "true")
    World(tmp_path, {"a": 10}).train(budget=0)
    assert os.environ[name] == "true"  # the user's choice
    monkeypatch.delenv(name)
    World(tmp_path, {"a": 10}).train(budget=0)
    assert os.environ[name] == "false"


def test_bad_input(tmp_path):
    world = World(tmp_path, {"a": 10})
    with pytest.raises(InputError, match="--budget must be at least 0, not -1"):
        world.train(budget=-1)
    with pytest.raises(InputError, match="must be 0 or more than 20 seconds, not 20"):
        world.train(budget=20)
    with pytest.raises(InputError, match="--at_once must be at least 1, not 0"):
        world.train(at_once=0)
    world.path = "gs://bucket/runs"
    with pytest.raises(InputError, match="needs a folder on this machine"):
        world.train()
    assert not world.events


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["Ctrl-C", "the parent is killed"])
def test_real_runs_are_stopped_and_finish_the_next_time(tmp_path, stop):
    """Two runs of three blocks, stopped after the first save; then the same again."""
    names = ("plain20-digits", "resnet20-digits")
    command = [
        *(sys.executable, "-m", "experiments.reproduce", "--table=digits"),
        *("--only=plain20,resnet20", "--scale=0.4", f"--workdir={tmp_path}"),
        *("--budget=2000", "--at_once=2", "--config.num_devices=1"),
        *("--config.model_kwargs.stage_sizes=(1,1,1)", "--config.batch_size=240"),
        *(f"--config.compilation_cache={CACHE}", "--config.checkpoint_every_steps=1"),
    ]

    def has_lines(log):  # of steps that are saved
        return log.exists() and log.stat().st_size

    def said():
        logs = [tmp_path / f"{name}.log" for name in names]
        return [log.read_text() for log in logs if log.exists()]

    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        command, text=True, start_new_session=True, **options
    ) as process:
        timed = [tmp_path / name / "timing.jsonl" for name in names]
        while process.poll() is None and not any(map(has_lines, timed)):
            time.sleep(0.02)
        if stop == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.kill()
        out, err = process.communicate()
    code = 75 if stop == "Ctrl-C" else -signal.SIGKILL
    assert process.returncode == code, out + err
    deadline = time.monotonic() + 120  # for runs whose parent was killed
    while not any("Stopped by SIGTERM" in text for text in said()):
        assert time.monotonic() < deadline, said()
        time.sleep(0.1)
    done = subprocess.run(command, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(row["state"], row["epochs"]) for row in rows] == [("finished", 12)] * 2
    assert len(said()) == 2 and any("Resumed at step" in text for text in said())
