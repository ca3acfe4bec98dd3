# SPDX-License-Identifier: Apache-2.0
"""Train many runs, one after another, and collect their results."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from etils import epath

from configs.default import Config
from experiments.training import loop, setup
from experiments.training import seeds as several
from experiments.training.loop import NotFiniteError
from experiments.training.workdir import Workdir
from rn_jax import filesystem
from rn_jax.errors import InputError

Result = dict[str, Any]

AT_BEST = "test_error_at_best_val_percent"
LAST = "test_error_percent"


@dataclass(frozen=True)
class Job:
    """A config and the name of the folder in which it is trained."""

    name: str
    config: Config


def train(
    jobs: Sequence[Job],
    path: str,
    *,
    seeds: Sequence[int] | None,
    command: str,
    report: Callable[[list[Result]], None],
) -> None:
    """Train every job in turn, in a folder of its own.

    A finished run is not trained again, and a stopped one is resumed. After a run that
    diverges, and so has a diverged.json, the next one begins.

    Args:
        jobs: the jobs, each with a name of its own.
        path: the folder that holds their folders.
        seeds: seeds with which each job is trained; None: its own.
        command: the command line, for the summary of each run.
        report: called with `results` before the first job and after every one.

    Raises:
        StoppedError: a signal stopped a run.
        InputError: something that the user can mend and that is known before the first
            step of all runs; or Ctrl-C between runs.
    """
    for job in jobs:
        setup.check(job.config)
        for folder, config in runs(job, path, seeds):
            Workdir(folder, config)  # raises for a folder of another config
    report(results(jobs, path, seeds))
    for number, job in enumerate(jobs, 1):
        print(f"[{number} of {len(jobs)}] {job.name}", flush=True)
        try:
            _train(job, path, seeds, command)
        except NotFiniteError as error:
            print(error)
        except KeyboardInterrupt:
            raise InputError(
                "Interrupted; the same command with "
                f"--workdir={filesystem.quoted(path)} resumes from there."
            ) from None
        finally:
            report(results(jobs, path, seeds))


def _train(job, path, seeds, command):
    folder = str(epath.Path(path) / job.name)
    named = {"command": command, "resumed_by": path}
    if seeds is None:
        loop.train(job.config, folder, **named)
    else:
        several.train(job.config, folder, seeds, **named)


def results(
    jobs: Sequence[Job], path: str, seeds: Sequence[int] | None
) -> list[Result]:
    """Return what the folders of the jobs hold.

    Returns:
        A dict for each job: state ("finished", "unfinished", "not begun" or
        "diverged") and n, the number of finished runs. If there are any, also the
        `seeds.describe` of test_error_percent and, with held-out examples, of
        test_error_at_best_val_percent; params, epochs and steps of a run; means of
        train_loss, wall_seconds and images_per_second; devices, versions and
        git_revision of the first run.
    """
    return [_result(job, path, seeds) for job in jobs]


def _result(job, path, seeds):
    workdirs = [Workdir(folder, config) for folder, config in runs(job, path, seeds)]
    summaries = [found for run in workdirs if (found := run.summary())]
    reasons = [found["reason"] for run in workdirs if (found := run.diverged())]
    if reasons:
        state = "diverged"
    elif len(summaries) == len(workdirs):
        state = "finished"
    else:
        begun = any(run.path.exists() for run in workdirs)
        state = "unfinished" if begun else "not begun"
    result = {"state": state, **together(summaries)}
    return result | {"reason": reasons[0]} if reasons else result


def together(summaries: Sequence[Mapping[str, Any]]) -> Result:
    """Combine the summaries of one config under several seeds.

    Returns:
        A dict as `results` has it, without the state.
    """
    result: Result = {"n": len(summaries)}
    if not summaries:
        return result
    for name in (LAST, AT_BEST):
        values = [summary[name] for summary in summaries]
        result[name] = None if None in values else several.describe(values)
    for name in ("params", "epochs", "steps", "devices", "versions", "git_revision"):
        result[name] = summaries[0][name]
    for name in ("train_loss", "wall_seconds", "images_per_second"):
        values = [s[name] for s in summaries if s[name] is not None]
        result[name] = statistics.fmean(values) if values else None
    return result


def runs(job: Job, path: str, seeds: Sequence[int] | None) -> list[tuple[str, Config]]:
    """Return the folder and the config of every run of a job, as `train` has them."""
    folder = str(epath.Path(path) / job.name)
    if seeds is None:
        return [(folder, job.config)]
    return [(several.place(folder, s), replace(job.config, seed=s)) for s in seeds]


# --- Cells of a table -----------------------------------------------------------------


def error_cell(
    result: Result, name: str = LAST, statistic: str = "mean", mark: str = ""
) -> str:
    """Return an error in percent, with its deviation, or the state of the runs.

    Args:
        result: one of `results`.
        name: LAST or AT_BEST.
        statistic: "mean", "median" or "best" of the runs.
        mark: text after the number.
    """
    found = result.get(name)
    if found is None:
        return "-" if result["n"] else result["state"]
    deviation = ""
    if statistic == "mean" and found["std"] is not None:
        deviation = f" ± {found['std']:.2f}"
    state = "" if result["state"] == "finished" else f" ({result['state']})"
    return f"{found[statistic]:.2f}{deviation}{mark}{state}"


def size_cells(result: Result) -> list[str]:
    """Return the cells below `SIZE_HEAD`."""
    if not result["n"]:
        return ["0", *["-"] * (len(SIZE_HEAD) - 1)]
    speed = result["images_per_second"]
    return [
        str(result["n"]),
        str(result["epochs"]),
        f"{result['params']:,}",
        f"{result['wall_seconds']:,.0f}",
        "-" if speed is None else f"{speed:,.0f}",
    ]


SIZE_HEAD = ["runs", "epochs", "parameters", "seconds", "images/s"]
