# SPDX-License-Identifier: Apache-2.0
"""The training loop: resume, train, evaluate, save, and sum up."""

import collections
import contextlib
import io
import math
import signal
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.default import Config
from experiments import figures
from experiments.config import BEFORE
from experiments.training import evaluation, plots, pretrained, summary
from experiments.training.progress import Progress
from experiments.training.setup import Trainer, build
from experiments.training.timing import Clock, Profile
from experiments.training.workdir import Workdir
from rn_jax import filesystem, leaving, metrics, parallel, survival_probs
from rn_jax.checkpoint import Checkpoints
from rn_jax.errors import InputError
from rn_jax.train import ZERO_SUMS

# The host fetches metrics when one of them is to be logged, and at the latest after
# this many steps or seconds, so that the progress bar keeps moving.
_MOST_STEPS = 100
_MOST_SECONDS = 0.5

# Metrics that are fetched for every step, to name one that was not finite with its
# learning rate; those of an epoch are summed in the state.
_OF_EVERY_STEP = ("loss", "grad_norm", "rate_factor")


class StoppedError(InputError):
    """A signal stopped the run, whose state is saved: the same command resumes it.

    Args:
        stopped: what stopped, without a full stop.
        path: the --workdir that resumes it.
    """

    exit_code = leaving.EXIT_CODE

    def __init__(self, stopped: str, path: str):
        super().__init__(f"{stopped}; {_resumes(path)}")
        self._stopped = stopped

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython prints instead of a traceback."""
        return [f"{self._stopped}; run the cell again to resume."]


class NotFiniteError(InputError):
    """Training diverged: the loss, its gradient or a parameter is not finite."""


def train(
    config: Config,
    path: str,
    *,
    command: str | None = None,
    resumed_by: str | None = None,
    profile_steps: int = 0,
) -> dict[str, Any]:
    """Train by a config, or resume the run that stopped in the folder.

    Args:
        config: the run's.
        path: the run's folder.
        command: the command that began or resumed the run, for the summary.
        resumed_by: the --workdir that resumes the run, if it is not `path`.
        profile_steps: number of steps whose trace is written to the folder `profile`
            of the run.

    Returns:
        The summary.

    Raises:
        StoppedError: a signal came, and the state is saved, if there was a first step.
            Before it, a signal ends the process of a command, see `leaving.watch`.
        NotFiniteError: training diverged.
        InputError: bad input that the user can correct.
    """
    workdir = Workdir(path, config)
    for name in BEFORE:
        value = getattr(workdir.config, name)
        if value != getattr(config, name) and parallel.is_first_process():
            print(
                f"The run in {path} was started with an earlier version: it continues "
                f"with {name}={value}."
            )
    config = workdir.config
    if result := workdir.summary():
        if parallel.is_first_process():
            print(f"{path} holds the finished run of this config.")
            print(summary.sentence(config, result))
            if figures.current() != figures.DEFAULT:  # asked for, so drawn again
                plots.save(workdir.figures, config, workdir.epochs())
        return result
    resumed_by = resumed_by or path
    try:
        with leaving.saying(str(StoppedError("Interrupted", resumed_by))):
            return _train(config, workdir, command, resumed_by, profile_steps)
    except KeyboardInterrupt:  # of a program, see `leaving.watch`
        raise StoppedError("Interrupted", resumed_by) from None
    finally:
        workdir.close()


def _train(config, workdir, command, resumed_by, profile_steps):
    with parallel.together():
        trainer = build(config, mean_image=workdir.mean_image())
    alone = jax.process_count() == 1
    with _printing_in_the_first_process(), contextlib.ExitStack() as held:
        if not alone:  # none may end before all of them agree on a step
            held.enter_context(StopSignal())
        with parallel.together():
            run = _Run(trainer, workdir, command)
        with _ending_alone(), contextlib.closing(run):
            with StopSignal(at_once=alone) as stop:
                run.resume()
                run.train(stop, profile_steps)
            in_last_step = bool(stop) and alone
            if run.step < trainer.total_steps or in_last_step:
                by = stop.name or "a signal to another process"
                at = f"saved at step {run.step} of {trainer.total_steps}"
                raise StoppedError(f"Stopped by {by} and {at}", resumed_by)
            result = run.finish()
        print(summary.sentence(config, result))
        return result


def _resumes(path):
    folder = filesystem.quoted(path)
    return f"the same command with --workdir={folder} resumes from there."


@contextlib.contextmanager
def _ending_alone():
    """Turn what ends one process of several, but not the others, into an AloneError."""
    try:
        yield
    except (StoppedError, NotFiniteError):  # in all of them at the same step
        raise
    except (InputError, jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, InputError):
            raise parallel.AloneError(str(error)) from error
        # Most often from a collective, since another process has ended.
        raise parallel.AloneError(
            f"Process {jax.process_index()} of {jax.process_count()} cannot continue "
            f"({str(error).splitlines()[0]}); start all of them again by the same "
            "commands to resume from the last checkpoint."
        ) from error


def _printing_in_the_first_process():
    if parallel.is_first_process():
        return contextlib.nullcontext()
    return contextlib.redirect_stdout(io.StringIO())


def _rates(trainer):
    """Return the learning rate of each step by the schedule, np.f32[total_steps]."""

    def rate(step):
        return jnp.asarray(trainer.schedule(step), jnp.float32)

    return np.asarray(jax.vmap(rate)(jnp.arange(trainer.total_steps)))


class _Run:
    """A run in progress: the state on the devices and what the host knows of it."""

    def __init__(self, trainer: Trainer, workdir: Workdir, command: str | None):
        self.trainer, self.workdir, self.command = trainer, workdir, command
        self.step = 0
        self.best: dict[str, Any] | None = None  # the evaluation with the least error
        self.checkpoints: Any = None  # until `resume`
        self._begun = workdir.checkpoints.exists()
        if not self._begun:  # a bad init_from is reported before anything is written
            self.state = _first_state(trainer)
        workdir.open(writes=parallel.is_first_process())
        if trainer.mean_image is not None:
            workdir.keep_mean_image(trainer.mean_image)
        # Metrics on the devices: of steps that may still be running, and of steps that
        # have ended and are not fetched yet.
        self._in_flight: collections.deque[tuple[int, Any]] = collections.deque()
        self._ended: list[tuple[int, Any]] = []
        self._fetched = time.perf_counter()
        self._rate_factor = np.float32(1)  # of the last step fetched
        # On the host, so that logging a rate does not wait for the devices.
        self._rates = _rates(trainer)

    def resume(self) -> None:
        """Go to the newest checkpoint, if there is one."""
        trainer = self.trainer
        self.clock = Clock(trainer.config.batch_size)
        self.checkpoints = Checkpoints(self.workdir.checkpoints)
        if restored := self.checkpoints.restore(trainer.initial_state):
            state, record = restored
            self.best = record.pop("best")
            self.clock.totals = record
            self.step = int(state.step)
            self.state = trainer.replicate(state)
            print(f"Resumed at step {self.step} of {trainer.total_steps}.")
        elif self._begun:
            self.state = _first_state(trainer)
        print(f"Run folder: {self.workdir.path}")
        self.workdir.resume_at(self.step)

    def train(self, stop: "StopSignal", profile_steps: int) -> None:
        """Train to the last step or to a signal, and save in both cases."""
        trainer, config = self.trainer, self.trainer.config
        evaluate_every = (
            config.eval_every_steps
            or config.eval_every_epochs * trainer.steps_per_epoch
        )
        self.progress = Progress(
            total=trainer.total_steps,
            done=self.step,
            batch_size=config.batch_size,
            shown=parallel.is_first_process(),
        )
        batches = trainer.batches(self.step, trainer.total_steps)
        stops = parallel.Agreement()
        profile = Profile(
            self.workdir.path / "profile",
            profile_steps if parallel.is_first_process() else 0,
        )
        try:
            while self.step < trainer.total_steps and not stops.any(bool(stop)):
                batch = self.clock.next(batches)
                self.state, sums = trainer.train_step(self.state, batch, trainer.key)
                stop.hold()  # the step is compiled: from now on there is work to save
                self.step += 1
                self._in_flight.append((self.step, sums))
                self._await(leave=evaluation.IN_FLIGHT)
                if self._should_fetch():
                    self._fetch()
                self.clock.start(self.state)
                profile.after_step(self.state)
                if self.step == trainer.total_steps or self._is_due(evaluate_every):
                    self._evaluate()
                elif self._is_due(config.checkpoint_every_steps):
                    self._save()
            if self.step < trainer.total_steps:
                self._save()
            self.checkpoints.wait()
        finally:
            profile.close(self.state)
            batches.close()
            self.progress.close()

    def _is_due(self, every):
        return every and self.step % every == 0

    def _await(self, *, leave: int = 0):
        """Wait for the steps in flight, all but the last `leave`."""
        while len(self._in_flight) > leave:
            self._ended.append(self._in_flight.popleft())
            jax.block_until_ready(self._ended[-1][1]["loss"])
            self.clock.step_ended()

    def _should_fetch(self):
        if not self._ended:
            return False
        every = self.trainer.config.log_every_steps or _MOST_STEPS
        if self._ended[-1][0] % every == 0 or len(self._ended) >= _MOST_STEPS:
            return True
        # Several processes must find at the same step that training diverged.
        alone = jax.process_count() == 1
        return alone and time.perf_counter() - self._fetched > _MOST_SECONDS

    def _fetch(self):
        """Fetch the metrics of the steps that have ended, check them and log them."""
        every = self.trainer.config.log_every_steps
        ended, self._ended = self._ended, []
        whole = {step for step, _ in ended if every and step % every == 0}
        whole |= {step for step, _ in ended[-1:]}  # which the progress bar shows
        ended = jax.device_get(
            [
                (step, sums if step in whole else {n: sums[n] for n in _OF_EVERY_STEP})
                for step, sums in ended
            ]
        )
        self._fetched = time.perf_counter()
        for step, sums in ended:
            if not math.isfinite(sums["loss"]) or not math.isfinite(sums["grad_norm"]):
                self._diverge(step)
            self._rate_factor = sums["rate_factor"]
            if step not in whole:
                continue
            mean = metrics.means(sums)
            epoch = math.ceil(step / self.trainer.steps_per_epoch)
            if every and step % every == 0:
                line = {
                    "kind": "step",
                    "step": step,
                    "epoch": epoch,
                    "train_loss": mean["loss"],
                    "train_error_percent": mean["error_percent"],
                    "grad_norm": float(sums["grad_norm"]),
                    "learning_rate": self._learning_rate(step),
                    "open_blocks": float(sums["open"].sum()),
                }
                self.workdir.log("metrics", line)
        if ended:
            last = mean["loss"], mean["error_percent"]
            self.progress.advance(len(ended), epoch, *last)

    def _fetch_all(self):
        self._await()
        self._fetch()

    def _learning_rate(self, step):
        """Return the rate of the step that led to `step`, the last one fetched."""
        return float(self._rates[step - 1] * self._rate_factor)

    def _evaluate(self):
        """Evaluate, log, adapt the learning rate, and save."""
        trainer, config = self.trainer, self.trainer.config
        self._fetch_all()
        self.clock.stop(self.state)
        started = time.perf_counter()
        steps = trainer.eval_steps(self.step)
        if config.batch_norm_at_test == "exact":
            batches = trainer.feed.train_batches(0, trainer.statistics_batches)
            self.state = evaluation.with_exact_statistics(steps, self.state, batches)
        line = {
            "kind": "epoch",
            "step": self.step,
            "epoch": summary.whole(self.step / trainer.steps_per_epoch),
            "learning_rate": self._learning_rate(self.step),
            **evaluation.measure(
                steps, self.state, trainer.feed, trainer.eval_batch_size
            ),
        }
        losses = [line[name] for name in line if name.endswith("_loss")]
        if not all(map(math.isfinite, losses)):
            self._diverge(self.step)
        self.workdir.log("metrics", line)
        best = evaluation.better(self.best, line)
        self.best = best or self.best
        self.state = _next_epoch(trainer, self.state, line.get("val_error_percent"))
        self._save(best is not None, eval_seconds=time.perf_counter() - started)
        self.progress.say(summary.evaluation_sentence(line))

    def _save(self, is_best=False, **timing):
        """Save a checkpoint, and log what was timed since the one before."""
        self._fetch_all()
        self.clock.stop(self.state)
        if not _is_finite(self.state):  # the update after a loss that was finite
            self._diverge(self.step)
        self.workdir.log("timing", {"step": self.step, **self.clock.read(), **timing})
        record = {**self.clock.totals, "best": self.best}
        self.checkpoints.save(self.state, record, best=is_best)
        self.clock.start(self.state)

    def _diverge(self, step):
        """End the run at a step whose loss, gradient or parameters are not finite."""
        self.checkpoints.wait()
        last = self.checkpoints.latest_step()
        reason = summary.divergence_sentence(step, self._learning_rate(step), last)
        self.workdir.note_divergence({"reason": reason, **self._facts(step)})
        raise NotFiniteError(reason)

    def finish(self) -> dict[str, Any]:
        """Draw the figures and write the summary; return it in every process."""
        self.checkpoints.close()
        if parallel.is_first_process():
            epochs = self.workdir.epochs()
            with self.workdir.writing():
                self._draw(epochs)
            ended, speed = self._facts(self.step), self.clock.images_per_second()
            self.workdir.finish(summary.summarize(ended, epochs[-1], self.best, speed))
        parallel.wait_for_all()
        return filesystem.read_json(self.workdir.path / "summary.json")

    def _draw(self, epochs):
        model, gates = self.trainer.model, None
        if (depth := model.stochastic_depth) is not None:
            opened = np.asarray(self.state.open_counts) / self.step
            probabilities = np.asarray(survival_probs(depth, model.num_blocks))
            gates = {
                "survival_probs": probabilities.tolist(),
                "open_share": opened.tolist(),
                "steps": self.step,
            }
        plots.save(self.workdir.figures, self.trainer.config, epochs, gates)

    def _facts(self, step):
        seconds = self.clock.wall_seconds()
        return summary.facts(self.trainer, step, seconds, self.command)

    def close(self) -> None:
        """End the threads that save."""
        # Among several processes that would be to wait for one that may have ended.
        if self.checkpoints is not None and jax.process_count() == 1:
            with contextlib.suppress(InputError):  # it was reported already
                self.checkpoints.close()


def _first_state(trainer):
    if trainer.config.init_from is None:
        return trainer.initial_state
    state = pretrained.initialise(trainer.initial_state, trainer.config)
    return trainer.replicate(state)


def _next_epoch(trainer, state, val_error):
    """Return the state with sums of zero, and the error given to its controller."""
    feedback = jax.device_get(state.feedback)
    if val_error is not None:
        feedback = trainer.feedback.after_evaluation(feedback, val_error)
    fresh = {"sums": jax.tree.map(np.float32, ZERO_SUMS), "feedback": feedback}
    return state.replace(**trainer.replicate(fresh))


def _is_finite(state):
    trained = (state.params, state.batch_stats, state.opt_state)
    arrays = (np.asarray(leaf) for leaf in jax.tree.leaves(trained))
    return all(np.isfinite(array).all() for array in arrays)


class StopSignal:
    """Inside the context, true once SIGTERM or SIGINT has come.

    Only a program's main thread can handle signals. In another one, and where a signal
    has a handler that is not Python's, this stays False.

    Args:
        at_once: let a signal before `hold` end a process of a command at once, see
            `leaving.watch`.
    """

    name = None

    def __init__(self, *, at_once: bool = False):
        self._at_once = at_once

    def hold(self) -> None:
        """Keep a first signal from ending the process from now on."""
        leaving.HOLDERS.add(self)

    def __enter__(self):
        def note(number, frame):
            self.name = signal.Signals(number).name

        self._before = {
            number: signal.signal(number, note)
            for number in leaving.SIGNALS
            if threading.current_thread() is threading.main_thread()
            and signal.getsignal(number) is not None  # None: of another language
        }
        if not self._at_once:
            self.hold()
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        leaving.HOLDERS.discard(self)

    def __bool__(self):
        return self.name is not None
