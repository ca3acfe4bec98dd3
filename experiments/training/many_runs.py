# SPDX-License-Identifier: Apache-2.0
"""Train many runs, one after another, and collect their results.

Of several seeds, He et al. 2015 report the best of 5 runs with their mean and standard
deviation, He et al. 2016 the median of 5.
"""

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from etils import epath
from tqdm import tqdm

from configs.default import Config
from experiments.training import loop, setup
from experiments.training.workdir import Workdir
from rn_jax import filesystem, leaving, parallel
from rn_jax.errors import InputError

Result = dict[str, Any]

AT_BEST = "test_error_at_best_val_percent"
LAST = "test_error_percent"
# When each of these errors is measured.
PROTOCOLS = {
    LAST: "after the last epoch",
    AT_BEST: "at the epoch of the best validation error",
}


def parse_seeds(seeds: str | int | Sequence[int]) -> list[int]:
    """Return the seeds of a list, or those below a number: 0 to 4 for 5.

    An option gives both as text: "0,3,7" or "5".

    Raises:
        InputError: it is neither, or a seed stands twice.
    """
    given = str(seeds) if isinstance(seeds, int) else seeds
    parts = given.split(",") if isinstance(given, str) else [*map(str, given)]
    found = [int(part) for part in parts] if all(map(str.isdecimal, parts)) else []
    if isinstance(given, str) and len(found) == 1:
        found = list(range(found[0]))
    if not found:
        raise InputError(
            "--seeds must be a number of seeds, such as 5, or a list of them, such as "
            f"0,3,7, not {seeds!r}."
        )
    if len(set(found)) < len(found):
        raise InputError(f"--seeds has a seed twice: {','.join(parts)}.")
    return found


# The type of an option or a keyword `seeds`.
Seeds = Annotated[int | Sequence[int], parse_seeds]


def train_seeds(
    config: Config,
    path: str,
    seeds: Sequence[int] | None,
    *,
    command: str | None = None,
    resumed_by: str | None = None,
) -> list[Result]:
    """Train every seed in turn, in a folder of its own; return the summary of each.

    A finished seed is not trained again, and a stopped one is resumed. When all have
    ended, seeds.json has `describe` of their errors.

    Args:
        config: config of all runs; its seed is not used.
        path: the folder of the folders seed0, seed1, ...
        seeds: seeds of the parameters, the order of examples, augmentation and gates;
            None: the config's, in `path` itself and without seeds.json.
        command, resumed_by: see `loop.train`.

    Raises:
        InputError: as `loop.train`.
    """
    resumed_by = resumed_by or path
    summaries, diverged = [], None
    for folder, run in _runs(config, path, seeds):
        try:
            summaries.append(
                loop.train(run, folder, command=command, resumed_by=resumed_by)
            )
        except loop.NotFiniteError as error:
            diverged = error  # raised once the others are trained
    if diverged is not None:
        raise diverged
    if seeds is not None and parallel.is_first_process():
        errors = {name: e for name, e in _errors(summaries).items() if e}
        text = json.dumps({"seeds": list(seeds), **errors}, indent=2)
        filesystem.replace_file(epath.Path(path) / "seeds.json", text + "\n")
        shown = errors.get(AT_BEST, errors[LAST])
        deviation = "" if shown["std"] is None else f" +- {shown['std']:.2f}"
        at_best = ", at the best validation epoch" if AT_BEST in errors else ""
        print(
            f"{len(seeds)} seeds{at_best}: test error median {shown['median']:.2f} %, "
            f"mean {shown['mean']:.2f}{deviation}, best {shown['best']:.2f}."
        )
    return summaries


def _runs(config, path, seeds):
    if seeds is None:
        return [(path, config)]
    folder = epath.Path(path)
    return [(str(folder / f"seed{s}"), replace(config, seed=s)) for s in seeds]


def _errors(summaries):
    """Return `describe` of both test errors; None if a run lacks one."""
    values = {name: [s[name] for s in summaries] for name in (LAST, AT_BEST)}
    return {n: None if None in each else describe(each) for n, each in values.items()}


def describe(values: Sequence[float]) -> Result:
    """Return the values and their best, median, mean and standard deviation.

    The deviation has n - 1 in its denominator, and is None for a single value.
    """
    return {
        "each": list(values),
        "best": min(values),
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


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
    resumed_by: str | None = None,
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
        resumed_by: the --workdir that resumes the runs, if it is not `path`.

    Raises:
        StoppedError: a signal stopped a run, or Ctrl-C a program that calls this.
        InputError: bad input that is known before the first step of all runs.
    """
    resumed_by = resumed_by or path
    with leaving.saying(str(loop.StoppedError("Interrupted", resumed_by))):
        _train(jobs, path, seeds, command, report, resumed_by)


def _train(jobs, path, seeds, command, report, resumed_by):
    check(jobs, path, seeds)
    so_far = results(jobs, path, seeds)
    report(so_far)
    for number, job in enumerate(jobs, 1):
        left = _time_left(so_far, len(seeds or [0]))
        print(f"[{number} of {len(jobs)}] {job.name}{left}", flush=True)
        try:
            folder = str(epath.Path(path) / job.name)
            train_seeds(
                job.config, folder, seeds, command=command, resumed_by=resumed_by
            )
        except loop.NotFiniteError as error:
            print(error)
        except KeyboardInterrupt:
            raise loop.StoppedError("Interrupted", resumed_by) from None
        finally:
            so_far = results(jobs, path, seeds)
            report(so_far)


def _time_left(results, runs_of_each):
    """Return an estimate by the mean of the runs that have ended, as text."""
    ended = [s for found in results if (s := found.get("wall_seconds"))]
    missing = [
        runs_of_each - found["n"] for found in results if found["state"] != "diverged"
    ]
    if not ended:
        return ""
    left = tqdm.format_interval(statistics.fmean(ended) * sum(missing))
    return f" (about {left} left for all)"


def check(jobs: Sequence[Job], path: str, seeds: Sequence[int] | None) -> None:
    """Check the config and the folder of every run, before any of them begins.

    Raises:
        InputError: a config cannot be used, or a folder holds a run of another one.
    """
    for job in jobs:
        setup.check(job.config)
        for folder, config in runs(job, path, seeds):
            Workdir(folder, config)


def results(
    jobs: Sequence[Job], path: str, seeds: Sequence[int] | None
) -> list[Result]:
    """Return what the folders of the jobs hold.

    Returns:
        A dict for each job: state ("finished", "unfinished", "not begun" or
        "diverged") and n, the number of finished runs. If there are any, also
        `describe` of test_error_percent and, with held-out examples, of
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
    result |= _errors(summaries)
    for name in ("params", "epochs", "steps", "devices", "versions", "git_revision"):
        result[name] = summaries[0][name]
    for name in ("train_loss", "wall_seconds", "images_per_second"):
        values = [s[name] for s in summaries if s[name] is not None]
        result[name] = statistics.fmean(values) if values else None
    return result


def runs_in(path: str) -> list[str]:
    """Return the folders of the runs in a folder, by the numbers in their names.

    That is the folder itself if it is a run, or those of a sweep, of a table or of
    several seeds; the folder itself if there are none.
    """
    folder = epath.Path(path)
    if (folder / "config.json").exists() or not folder.is_dir():
        return [path]
    inside = [
        each for place in _by_number(folder) for each in (place, *_by_number(place))
    ]
    return [str(run) for run in inside if (run / "config.json").exists()] or [path]


def _by_number(folder):
    def key(place):
        parts = re.split(r"(\d+(?:\.\d+)?)", place.name)
        return [float(part) if i % 2 else part for i, part in enumerate(parts)]

    return sorted(folder.iterdir(), key=key) if folder.is_dir() else []


def runs(job: Job, path: str, seeds: Sequence[int] | None) -> list[tuple[str, Config]]:
    """Return the folder and the config of every run of a job, as `train` has them."""
    return _runs(job.config, str(epath.Path(path) / job.name), seeds)


# --- Cells of a table -----------------------------------------------------------------


def error_cell(
    result: Result, name: str = LAST, statistic: str = "mean", mark: str = ""
) -> str:
    """Return an error in percent, with its deviation, or the state of the runs.

    `name` is LAST or AT_BEST, `statistic` is "mean", "median" or "best" of the runs,
    and `mark` is text after the number.
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
