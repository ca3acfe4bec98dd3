# SPDX-License-Identifier: Apache-2.0
"""Many runs, one after another, each resumable, into one table."""

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
    """A config, and the name of the folder in which it is trained."""

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
    """Trains every job in turn, in a folder of its own.

    What is finished is not trained again, and what was stopped goes on. A run that
    diverges has a diverged.json, and the next one begins.

    Args:
        jobs: no two of the same name.
        path: the folder in which theirs lie.
        seeds: each job is trained with all of these; None: with its own.
        command: that trains them all, for the summary of each.
        report: called with `results` before the first job and after every one.

    Raises:
        StoppedError: a signal stopped a run.
        InputError: what the user can mend, if it can be known before the first step of
            all; Ctrl-C between the runs.
    """
    for job in jobs:
        setup.check(job.config)
        for folder, config in runs(job, path, seeds):
            Workdir(folder, config)  # refuses a folder of another config
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
                f"--workdir={filesystem.quoted(path)} goes on from there."
            ) from None
        finally:
            report(results(jobs, path, seeds))


def _train(job, path, seeds, command):
    folder = str(epath.Path(path) / job.name)
    told = {"command": command, "resumed_by": path}
    if seeds is None:
        loop.train(job.config, folder, **told)
    else:
        several.train(job.config, folder, seeds, **told)


def results(
    jobs: Sequence[Job], path: str, seeds: Sequence[int] | None
) -> list[Result]:
    """What the folders of the jobs hold.

    Returns:
        A dict for each job: state ("finished", "unfinished", "not begun" or
        "diverged"), n finished runs and, if there are any, test_error_percent and,
        with a validation part, test_error_at_best_val_percent as `seeds.describe` has
        them; params, epochs and steps of a run; means of train_loss, wall_seconds and
        images_per_second; devices, versions and git_revision of the first.
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
    """What the summaries of the same config under several seeds say of it.

    Returns:
        What `results` has, without the state.
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
    """The folder and the config of every run of a job, as for `train`."""
    folder = str(epath.Path(path) / job.name)
    if seeds is None:
        return [(folder, job.config)]
    return [(several.place(folder, s), replace(job.config, seed=s)) for s in seeds]


# --- Cells of a table -----------------------------------------------------------------


def error_cell(
    result: Result, name: str = LAST, statistic: str = "mean", mark: str = ""
) -> str:
    """An error in percent, with the deviation of several runs, or why there is none.

    Args:
        result: of `results`.
        name: LAST or AT_BEST.
        statistic: mean, median or best of the runs.
        mark: put after the number.
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
    """Runs, epochs, parameters, seconds and images per second, as `SIZE_HEAD`."""
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
