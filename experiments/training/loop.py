# SPDX-License-Identifier: Apache-2.0
"""The training loop: resume, train, evaluate, save, and sum up."""

import collections
import contextlib
import io
import math
import resource
import signal
import sys
import threading
import time
from typing import Any

import jax
import numpy as np

from configs.default import Config
from experiments.config import BEFORE
from experiments.figures import save
from experiments.training import environment, plots, pretrained
from experiments.training.progress import Progress
from experiments.training.setup import Experiment, build
from experiments.training.timing import Pace, Profile
from experiments.training.workdir import Workdir
from rn_jax import filesystem, metrics, parallel, survival_probs
from rn_jax.checkpoint import Checkpoints
from rn_jax.errors import InputError
from rn_jax.train import ZERO_SUMS

# Steps handed to the device before the first of them is looked at.
_IN_FLIGHT = 4
# Whose versions the summary has.
_PACKAGES = "rn_jax jax jaxlib flax optax orbax-checkpoint numpy".split()


def train(
    config: Config,
    path: str,
    *,
    command: str | None = None,
    resumed_by: str | None = None,
    profile_steps: int = 0,
) -> dict[str, Any]:
    """Trains by a config, or goes on where the run in that folder stopped.

    Args:
        config: of the run.
        path: the run's folder.
        command: that began or resumed it, for the summary.
        resumed_by: what --workdir must be to go on, if not that folder.
        profile_steps: of which a trace is written, to the folder `profile` of the run.

    Returns:
        The summary.

    Raises:
        StoppedError: by a signal, and saved.
        InputError: what the user can mend, in one sentence.
    """
    workdir = Workdir(path, config)
    for name in BEFORE:
        value = getattr(workdir.config, name)
        if value != getattr(config, name) and parallel.is_first_process():
            print(
                f"The run in {path} was begun by an earlier version: it goes on with "
                f"{name}={value}."
            )
    config = workdir.config
    if summary := workdir.summary():
        if parallel.is_first_process():
            print(f"{path} holds the finished run of this config.")
            _print_result(config, summary)
        return summary
    try:
        with parallel.together():
            experiment = build(config, mean_image=workdir.mean_image())
        with _printing_in_the_first_process(), _StopSignal() as stop:
            with parallel.together():
                run = _Run(experiment, workdir, command)
            with _ending_alone(), contextlib.closing(run):
                run.resume()
                run.train(stop, profile_steps)
                if run.step < experiment.total_steps:
                    by = stop.name or "a signal to another process"
                    raise StoppedError(
                        f"Stopped by {by} and saved at step {run.step} of "
                        f"{experiment.total_steps}; the same command with "
                        f"--workdir={filesystem.quoted(resumed_by or path)} goes on "
                        "from there."
                    )
                summary = run.summarize()
            if parallel.is_first_process():
                _print_result(config, summary)
            return summary
    finally:
        workdir.close()


@contextlib.contextmanager
def _ending_alone():
    """Around what one process of several may fail in while the others go on."""
    try:
        yield
    except (StoppedError, NotFiniteError):  # in all of them at the same step
        raise
    except (InputError, jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, InputError):
            raise parallel.AloneError(str(error)) from error
        # Of a collective, most often, since another process has ended.
        raise parallel.AloneError(
            f"Process {jax.process_index()} of {jax.process_count()} cannot go on "
            f"({str(error).splitlines()[0]}); all started again by the same commands, "
            "they go on from the last checkpoint."
        ) from error


def _printing_in_the_first_process():
    if parallel.is_first_process():
        return contextlib.nullcontext()
    return contextlib.redirect_stdout(io.StringIO())


class StoppedError(InputError):
    """A signal stopped the run, whose state is saved: the same command goes on."""

    exit_code = 75


class NotFiniteError(InputError):
    """Training diverged: the loss, its gradient or a parameter is no number."""


class _Run:
    """A run in progress: the state on the devices and what the host knows of it."""

    def __init__(self, experiment: Experiment, workdir: Workdir, command: str | None):
        self.experiment = experiment
        self.workdir = workdir
        self.command = command
        self.step = 0
        self.checkpoints: Any = None  # until `resume`
        # What resuming needs beside the state; saved with every checkpoint.
        self.record: dict[str, Any] = {
            "wall_seconds": 0.0,
            "timed_seconds": 0.0,
            "timed_images": 0,
            "best": None,
        }
        self._begun = workdir.checkpoints.exists()
        if not self._begun:  # a bad init_from is said before anything is written
            self.state = self._first_state()
        workdir.open(writes=parallel.is_first_process())
        if experiment.mean_image is not None:
            workdir.keep_mean_image(experiment.mean_image)
        self._in_flight: collections.deque[tuple[int, Any]] = collections.deque()
        self._factor = 1.0  # of the learning rate in the last step looked at
        # Step and time since which training is timed.
        self._timed_from: tuple[int, float] | None = None
        self._pace = Pace()

    def resume(self) -> None:
        """Goes to the newest checkpoint, if there is one."""
        exp = self.experiment
        self.checkpoints = Checkpoints(self.workdir.checkpoints)
        if restored := self.checkpoints.restore(exp.initial_state):
            state, self.record = restored
            self.step = int(state.step)
            self.state = exp.replicate(state)
            print(f"Resumed at step {self.step} of {exp.total_steps}.")
        elif self._begun:
            self.state = self._first_state()
        print(f"Run folder: {self.workdir.path}")
        self.workdir.resume_at(self.step)
        self._clock = time.perf_counter()

    def close(self) -> None:
        """Ends the threads that save."""
        # Among several processes that would be to wait for one that may have ended.
        if self.checkpoints is not None and jax.process_count() == 1:
            with contextlib.suppress(InputError):  # which has been told
                self.checkpoints.close()

    def _first_state(self):
        exp = self.experiment
        if exp.config.init_from is None:
            return exp.initial_state
        state = pretrained.initialise(exp.initial_state, exp.config)
        return exp.replicate(state)

    def train(self, stop: "_StopSignal", profile_steps: int) -> None:
        """Runs to the last step, or to a signal. Saves in both cases."""
        exp, config = self.experiment, self.experiment.config
        self.progress = Progress(
            total=exp.total_steps,
            done=self.step,
            batch_size=config.batch_size,
            shown=parallel.is_first_process(),
        )
        batches = exp.feed.train_batches(self.step, exp.total_steps)
        stops = parallel.Agreement()
        profile = Profile(
            self.workdir.path / "profile",
            profile_steps if parallel.is_first_process() else 0,
        )
        try:
            while self.step < exp.total_steps and not stops.any(bool(stop)):
                with self._pace.waiting():
                    batch = next(batches)
                self.state, sums = exp.train_step(self.state, batch, exp.key)
                self.step += 1
                self._in_flight.append((self.step, sums))
                self._account(leave=_IN_FLIGHT)
                if self._timed_from is None:  # the first step, which was compiled
                    self._start_timing()
                profile.after_step(self.state)
                by_epochs = config.eval_every_epochs * exp.steps_per_epoch
                every = config.eval_every_steps or by_epochs
                if self.step == exp.total_steps or self._is_due(every):
                    self._account(leave=0)
                    self._end_epoch()
                elif self._is_due(config.checkpoint_every_steps):
                    self._account(leave=0)
                    self._save()
            if self.step < exp.total_steps:
                self._account(leave=0)
                self._save()
            self.checkpoints.wait()
        finally:
            profile.close(self.state)
            batches.close()
            self.progress.close()

    def _is_due(self, every):
        return every and self.step % every == 0

    def _account(self, *, leave: int):
        """Looks at the metrics of the steps in flight, all but the last `leave`."""
        config = self.experiment.config
        while len(self._in_flight) > leave:
            step, sums = self._in_flight.popleft()
            sums = jax.device_get(sums)
            self._pace.step_ended()
            if not math.isfinite(sums["loss"]) or not math.isfinite(sums["grad_norm"]):
                self._stop_not_finite(step)
            self._factor = sums["rate_factor"]
            mean = metrics.means(sums)
            epoch = math.ceil(step / self.experiment.steps_per_epoch)
            self.progress.step(epoch, mean["loss"], mean["error_percent"])
            every = config.log_every_steps
            if every and step % every == 0:
                self.workdir.log(
                    "metrics",
                    {
                        "kind": "step",
                        "step": step,
                        "epoch": epoch,
                        "train_loss": mean["loss"],
                        "train_error_percent": mean["error_percent"],
                        "grad_norm": float(sums["grad_norm"]),
                        "learning_rate": self._learning_rate(step, sums["rate_factor"]),
                        "open_blocks": float(sums["open"].sum()),
                    },
                )

    def _learning_rate(self, step, factor):
        """With which the step was taken that led to `step`."""
        return float(self.experiment.schedule(step - 1) * factor)

    def _stop_not_finite(self, step):
        self.checkpoints.wait()
        last = self.checkpoints.latest_step()
        kept = (
            "there is no checkpoint yet"
            if last is None
            else (f"the last good checkpoint, of step {last}, is kept")
        )
        reason = (
            f"The loss or its gradient is not finite at step {step} (learning rate "
            f"{self._learning_rate(step, self._factor):g}); {kept}. Try a lower "
            "learning_rate or a longer warmup, in a new --workdir."
        )
        self.workdir.note_divergence({"reason": reason, **self._facts(step)})
        raise NotFiniteError(reason)

    def _end_epoch(self):
        """Evaluates, logs, resets the epoch's sums, and saves."""
        exp = self.experiment
        self._stop_timing()
        started = time.perf_counter()
        if exp.config.batch_norm_at_test == "exact":
            self._recompute_statistics()
        state = self.state
        epoch = _whole(self.step / exp.steps_per_epoch)
        line = {
            "kind": "epoch",
            "step": self.step,
            "epoch": epoch,
            "learning_rate": self._learning_rate(self.step, self._factor),
        }
        sums = jax.device_get(state.sums)
        train_mean = metrics.means(sums)
        line |= {f"train_{name}": value for name, value in train_mean.items()}
        for part in ("val", "test"):
            if part in exp.feed.parts:
                mean = metrics.means(self._evaluate(part))
                line |= {f"{part}_{name}": value for name, value in mean.items()}
        opened = np.asarray(state.open_counts)
        if len(opened):
            line["open_blocks"] = float(opened.sum() / self.step)
            line["first_gradient"] = float(sums["gradient"] / sums["count"])
        if not all(
            math.isfinite(line[name]) for name in line if name.endswith("_loss")
        ):
            self._stop_not_finite(self.step)
        self.workdir.log("metrics", line)

        val_error, best = line.get("val_error_percent"), self.record["best"]
        is_best = val_error is not None and (
            best is None or val_error <= best["val_error_percent"]
        )
        if is_best:
            self.record["best"] = {
                "epoch": epoch,
                "val_error_percent": val_error,
                "test_error_percent": line["test_error_percent"],
            }
        feedback = jax.device_get(state.feedback)
        if val_error is not None:
            feedback = exp.feedback.after_evaluation(feedback, val_error)
        fresh = {"sums": jax.tree.map(np.float32, ZERO_SUMS), "feedback": feedback}
        self.state = state.replace(**exp.replicate(fresh))
        self._save(is_best, eval_seconds=time.perf_counter() - started)
        shown = [f"train loss {line['train_loss']:.4f}"] + [
            f"{part} error {line[f'{part}_error_percent']:.2f} %"
            for part in ("train", "val", "test")
            if f"{part}_error_percent" in line
        ]
        self.progress.say(f"epoch {epoch}: {', '.join(shown)}")

    @property
    def _test(self):
        begun = self.step > self.experiment.gates_from_step
        return self.experiment.test if begun else self.experiment.constant_test

    def _recompute_statistics(self):
        """Puts BatchNorm's statistics over training examples into the state.

        The steps to come do not see the difference: they take those of their batch.
        """
        exp, config = self.experiment, self.experiment.config
        size = config.batch_size
        number = min(config.batch_norm_examples // size, exp.steps_per_epoch)
        variables = self._variables()
        for i, batch in enumerate(exp.feed.train_batches(0, max(1, number))):
            variables["batch_stats"] = self._test.statistics(
                variables, batch, np.float32(i + 1)
            )
        self.state = self.state.replace(batch_stats=variables["batch_stats"])

    def _variables(self):
        state = self.state
        return {"params": state.params, "batch_stats": state.batch_stats}

    def _evaluate(self, part):
        exp, config = self.experiment, self.experiment.config
        variables = self._variables()
        size = math.ceil(config.eval_batch_size / len(exp.devices))
        total: collections.Counter[str] = collections.Counter()
        batch_size = size * len(exp.devices)  # every device has as many rows
        for batch in exp.feed.eval_batches(part, batch_size=batch_size):
            sums = jax.device_get(self._test.evaluate(variables, batch))
            total.update({name: float(value) for name, value in sums.items()})
        return total

    def _start_timing(self):
        jax.block_until_ready(self.state)
        self._timed_from = (self.step, time.perf_counter())
        self._pace.start()

    def _stop_timing(self):
        if self._timed_from is not None:
            jax.block_until_ready(self.state)
            step, since = self._timed_from
            images = (self.step - step) * self.experiment.config.batch_size
            self.record["timed_seconds"] += time.perf_counter() - since
            self.record["timed_images"] += images
            self._timed_from = None

    def _save(self, is_best=False, **timing):
        self._stop_timing()
        if not _is_finite(self.state):  # the update after a loss that was finite
            self._stop_not_finite(self.step)
        now = time.perf_counter()
        self.record["wall_seconds"] += now - self._clock
        self._clock = now
        self.workdir.log(
            "timing",
            {
                "step": self.step,
                "wall_seconds": self.record["wall_seconds"],
                "images_per_second": self._images_per_second(),
                "peak_memory_mib": _peak_memory_mib(),
                **self._pace.readings(),
                **timing,
            },
        )
        self.checkpoints.save(self.state, dict(self.record), best=is_best)
        self._start_timing()

    def _images_per_second(self):
        seconds = self.record["timed_seconds"]
        return self.record["timed_images"] / seconds if seconds else None

    def summarize(self) -> dict[str, Any]:
        """Draws the figures and writes summary.json; the first process, for all."""
        self.checkpoints.close()
        if parallel.is_first_process():
            with self.workdir.writing():
                summary = self._summary()
            self.workdir.finish(summary)
        parallel.wait_for_all()
        return filesystem.read_json(self.workdir.path / "summary.json")

    def _summary(self):
        exp, config = self.experiment, self.experiment.config
        epoch_lines = [
            ln for ln in self.workdir.lines("metrics.jsonl") if ln["kind"] == "epoch"
        ]
        figures = self.workdir.path / "figures"
        title = f"{config.model} on {config.dataset}"
        curves = plots.learning_curves(epoch_lines, title=title)
        save(curves, figures / "learning_curves.png")
        if exp.stochastic_depth is not None:
            survival = plots.survival(
                survival_probs(exp.stochastic_depth, exp.model.num_blocks),
                np.asarray(self.state.open_counts) / self.step,
                title=f"{title}, {self.step} steps",
            )
            save(survival, figures / "survival.png")
        best = self.record["best"] or {}
        return {
            **self._facts(self.step),
            "train_loss": epoch_lines[-1]["train_loss"],
            "test_error_percent": epoch_lines[-1]["test_error_percent"],
            "val_error_percent": epoch_lines[-1].get("val_error_percent"),
            "best_epoch": best.get("epoch"),
            "best_val_error_percent": best.get("val_error_percent"),
            "test_error_at_best_val_percent": best.get("test_error_percent"),
            "images_per_second": self._images_per_second(),
        }

    def _facts(self, step):
        """What a run is and was made with, however it ended."""
        exp, config = self.experiment, self.experiment.config
        since = time.perf_counter() - self._clock
        return {
            "model": config.model,
            "dataset": config.dataset,
            "params": exp.params,
            "num_blocks": exp.model.num_blocks,
            "epochs": _whole(step / exp.steps_per_epoch),
            "steps": step,
            "seed": config.seed,
            "protocol": config.protocol,
            "wall_seconds": self.record["wall_seconds"] + since,
            "devices": f"{len(exp.devices)} x {exp.devices[0].device_kind}",
            "processes": jax.process_count(),
            "machine": environment.machine(),
            "versions": environment.versions(_PACKAGES),
            "git_revision": environment.git_revision(),
            "command": self.command,
        }


class _StopSignal:
    """True once SIGTERM or SIGINT has come, while it is entered.

    Only a program's main thread can handle signals. In another one, and where a signal
    has a handler that is not Python's, this stays False.
    """

    name = None

    def __enter__(self):
        def note(number, frame):
            self.name = signal.Signals(number).name

        self._before = {
            number: signal.signal(number, note)
            for number in (signal.SIGTERM, signal.SIGINT)
            if threading.current_thread() is threading.main_thread()
            and signal.getsignal(number) is not None  # None: of another language
        }
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self):
        return self.name is not None


def _print_result(config, summary):
    published = config.published_error_percent.get(summary["dataset"])
    if published is None:
        on = f"{config.model} on {summary['dataset']}"
        beside = f"the config has no published figure for {on}"
    else:
        beside = f"{config.paper}: {published:.2f} %"
    at_best = summary["test_error_at_best_val_percent"]
    middle = (
        "" if at_best is None else f", {at_best:.2f} % at the best validation epoch"
    )
    print(f"Test error {summary['test_error_percent']:.2f} %{middle} ({beside}).")


def _whole(epochs):
    """As an integer if it is one."""
    return int(epochs) if epochs == int(epochs) else round(epochs, 2)


def _is_finite(state):
    trained = (state.params, state.batch_stats, state.opt_state)
    arrays = (np.asarray(leaf) for leaf in jax.tree.leaves(trained))
    return all(np.isfinite(array).all() for array in arrays)


def _peak_memory_mib():
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**20
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**20 if sys.platform == "darwin" else 2**10)
