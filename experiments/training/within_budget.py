# SPDX-License-Identifier: Apache-2.0
"""Train many runs for a limited time, several of them in parallel.

A stopped run continues in the next call, so it need not end in the time that is left.
But each call has to load the data and compile the step again. A run therefore begins
only if a fifth of the budget is left, or if it is predicted to end in time. Runs begin
in their order; one that does not fit is passed over for a later one that does.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from etils import epath

from configs.default import Config
from experiments import cli, figures
from experiments.markdown import table as markdown
from experiments.training import loop, many_runs
from experiments.training.feed import count_train
from experiments.training.schedule import count_steps
from experiments.training.workdir import Workdir
from rn_jax import data, filesystem, leaving, parallel
from rn_jax.errors import InputError

LEAST = 0.2  # share of the budget that, if left, always justifies starting a run
START = 40.0  # seconds that a run takes to read its data and to compile
RESERVE = 20.0  # seconds of the budget in which stopped runs are saved
_POLL = 0.2  # seconds between looks at the processes


@dataclass(frozen=True)
class Budget:
    """A limit of time for runs that share the devices.

    Attributes:
        budget: seconds after which all runs have stopped, to continue the next time; 0:
            no run begins, and the existing results are collected.
        at_once: number of runs in parallel, with a budget.
    """

    budget: int | None = None
    at_once: int = 3


NO_LIMIT = Budget()


class Process(Protocol):
    """A run in a process of its own, such as a `multiprocessing.Process`."""

    @property
    def exitcode(self) -> int | None:
        """The exit code; None while it runs."""

    def terminate(self) -> None:
        """Send SIGTERM: the run saves its state and ends."""

    def kill(self) -> None:
        """Send SIGKILL."""


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        state: as in `many_runs.results`.
        step: the last one saved.
        total: steps of the whole run.
        step_seconds: predicted time of a step, with its share of the evaluations, from
            those that were measured last; None before any were.
    """

    state: str
    step: int
    total: int
    step_seconds: float | None

    @property
    def seconds_left(self) -> float | None:
        """The time that the remaining steps are predicted to take."""
        if self.step_seconds is None:
            return None
        return self.step_seconds * (self.total - self.step)


def progress(job: many_runs.Job, path: str) -> Progress:
    """Return how far the run of a job is, from the files in its folder.

    Raises:
        InputError: the folder holds a run of another config.
    """
    [(folder, config)] = many_runs.runs(job, path, None)
    [result] = many_runs.results([job], path, None)
    lines = Workdir(folder, config).lines("timing.jsonl")
    step = lines[-1]["step"] if lines else 0
    per_epoch = data.steps_per_epoch(count_train(config), config.batch_size)
    seconds = None
    if timed := [s for ln in lines if (s := ln["step_seconds_p50"]) is not None]:
        seconds = timed[-1] + sum(line.get("eval_seconds", 0) for line in lines) / step
    return Progress(result["state"], step, count_steps(config, per_epoch), seconds)


def seconds_needed(run: Progress, budget: float) -> float:
    """Return the time that must be left for a run to begin."""
    least = LEAST * budget
    if run.seconds_left is None:
        return least
    return min(least, START + run.seconds_left)


def to_begin(
    waiting: Mapping[str, Progress], *, budget: float, left: float, places: int
) -> list[str]:
    """Return the names of the runs that begin now.

    Args:
        waiting: the runs that have not begun in this call, the most important first.
        budget: of the whole call, in seconds.
        left: seconds until runs are stopped.
        places: number of runs that may begin.
    """
    fitting = [n for n, run in waiting.items() if seconds_needed(run, budget) <= left]
    return fitting[: max(places, 0)]


def train(
    jobs: Sequence[many_runs.Job],
    path: str,
    *,
    budget: int,
    at_once: int,
    command: str,
    report: Callable[[list[many_runs.Result]], None],
    at_end: Callable[[], None],
    start: Callable[[many_runs.Job], Process] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Train jobs in parallel, stop them in time, and print how far each is.

    A finished run is not trained again, and neither is one that diverged. What a run
    prints goes to FOLDER.log beside its folder.

    Args:
        jobs, path, command, report: as for `many_runs.train`.
        budget, at_once: see `Budget`.
        at_end: called once, when all runs have stopped; its time is not in the budget.
        start: starts the process of a job; None: one that trains it.
        clock, sleep: the time in seconds, and a function that waits.

    Raises:
        StoppedError: a signal came, and the runs are saved.
        InputError: bad input that is known before any run begins, or a run failed.
    """
    with leaving.saying(str(loop.StoppedError("Interrupted", path))):
        _train(
            jobs,
            path,
            budget=budget,
            at_once=at_once,
            report=report,
            at_end=at_end,
            start=start or _starter(path, command),
            clock=clock,
            sleep=sleep,
        )


def _train(jobs, path, *, budget, at_once, report, at_end, start, clock, sleep):
    begin = clock()
    cli.at_least(0, budget=budget)
    if 0 < budget <= RESERVE:
        raise InputError(
            f"--budget must be 0 or more than {RESERVE:.0f} seconds, not {budget}: "
            "runs need these to save their state."
        )
    cli.at_least(1, at_once=at_once)
    if filesystem.is_remote(path):
        raise InputError(f"--budget needs a folder on this machine, not {path}.")
    # Processes share the memory of a GPU; this one needs little of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    many_runs.check(jobs, path, None)
    waiting = {}
    for job in jobs:
        run = progress(job, path)
        print(f"{job.name}: {describe(run)}")
        if run.state not in ("finished", "diverged"):
            waiting[job.name] = run
    by_name = {job.name: job for job in jobs}
    running: dict[str, Process] = {}
    failed: list[str] = []

    def say(sentence):
        print(f"[{clock() - begin:.0f} s] {sentence}", flush=True)

    def collect():
        for name in [name for name, p in running.items() if p.exitcode is not None]:
            code = running.pop(name).exitcode
            if code not in (0, loop.StoppedError.exit_code, -signal.SIGTERM):
                failed.append(name)
            say(f"{name} has ended: {describe(progress(by_name[name], path))}")
            report(many_runs.results(jobs, path, None))

    report(many_runs.results(jobs, path, None))
    with loop.StopSignal() as stop:
        try:
            while not stop and (left := begin + budget - RESERVE - clock()) > 0:
                collect()
                places = at_once - len(running)
                for name in to_begin(waiting, budget=budget, left=left, places=places):
                    del waiting[name]
                    say(f"{name} begins.")
                    running[name] = start(by_name[name])
                if not running:
                    break
                sleep(_POLL)
        finally:
            for process in running.values():
                process.terminate()
        while running and clock() < begin + budget - 1:
            sleep(_POLL)
            collect()
        for name, process in running.items():  # it continues from its last checkpoint
            process.kill()
            say(f"{name} did not end in time and is killed.")
    for name, run in waiting.items() if budget and not stop else ():
        needed = seconds_needed(run, budget)
        say(
            f"{name} did not begin: it needs {needed:.0f} s, and no place was free "
            "while that much was left."
        )
    report(many_runs.results(jobs, path, None))
    print(
        "\n".join(_table({job.name: progress(job, path) for job in jobs})), flush=True
    )
    at_end()
    if failed:
        raise InputError(
            "These runs failed; their logs say why: "
            f"{', '.join(str(epath.Path(path) / f'{name}.log') for name in failed)}."
        )
    if stop:
        raise loop.StoppedError(f"Stopped by {stop.name} and saved", path)


def describe(run: Progress) -> str:
    """Return the state, the steps and the predicted time of a run in words."""
    if run.state in ("finished", "diverged"):
        return f"{run.state}."
    text = f"step {run.step:,} of {run.total:,}, "
    if run.seconds_left is None:
        return f"{text}not measured yet."
    return (
        f"{text}{1000 * (run.step_seconds or 0):.2f} ms a step, predicted to take "
        f"{run.seconds_left:,.0f} s more."
    )


def _table(runs):
    rows = []
    for name, run in runs.items():
        cells = [name, run.state, f"{run.step:,}", f"{run.total:,}"]
        if run.step_seconds is not None:
            cells += [f"{1000 * run.step_seconds:.2f}", f"{run.seconds_left:,.0f}"]
        rows.append([*cells, *[""] * (6 - len(cells))])
    head = ["run", "state", "step", "of", "ms a step", "s left, predicted"]
    return markdown(head, rows, words=2)


def _starter(path, command):
    context = multiprocessing.get_context("spawn")  # JAX has threads

    def start(job):
        [(folder, config)] = many_runs.runs(job, path, None)
        given = (config, folder, command, path, figures.current())
        process = context.Process(target=_train_one, args=given)
        # Until it has left the terminal, it inherits that it ignores Ctrl-C.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        return process

    return start


def _train_one(config: Config, folder: str, command: str, path: str, style):
    """Train one run in this process, which belongs to it alone."""
    os.setsid()  # away from the terminal, whose Ctrl-C would be a second signal
    leaving.watch()
    # A parent that was killed cannot stop its runs.
    parallel.when_parent_ends(partial(os.kill, os.getpid(), signal.SIGTERM))
    log = epath.Path(f"{folder}.log")
    filesystem.make_folder(log.parent)
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    def run():
        with figures.using(style):
            try:
                loop.train(config, folder, command=command, resumed_by=path)
            except loop.NotFiniteError as error:  # the table says it
                print(error)

    sys.exit(cli.exit_code(run))
