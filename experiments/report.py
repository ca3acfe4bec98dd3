# SPDX-License-Identifier: Apache-2.0
"""Write one HTML page about a run, or about several side by side, ended or not.

python -m experiments.report RUN [RUN2 ...] [--out=FILE] [--worst=N] [--data_dir=DIR]
"""

import heapq
import re
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from experiments import cli, report_page
from experiments.config import read_config, short_names
from experiments.report_page import Mistake, Record
from experiments.studies import STUDIES
from experiments.training import many_runs, trained
from experiments.training.network import make_network
from experiments.training.progress import bar
from experiments.training.workdir import Workdir
from rn_jax import parallel, survival_probs
from rn_jax.data import get_spec
from rn_jax.errors import InputError, missing_folder
from rn_jax.filesystem import plain, replace_file

_LONGEST_NAME = 80  # of the runs in the name of a page, in characters


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.Parser(__doc__, report).call(argv, interrupted="Interrupted.")


def report(
    runs: Sequence[cli.Path],
    *,
    out: cli.AnyPath | None = None,
    worst: int = 24,
    data_dir: cli.Path | None = None,
    command: str = "experiments.report.report(...)",
) -> epath.Path:
    """Read the runs, test the networks of finished ones, and write the page.

    Args:
        runs: folders of the runs, in the order of the page; that of a sweep, a table or
            several seeds stands for all of its runs.
        out: the page's file; None: report.html in the folder, or of several folders
            report-of-NAME-NAME.html beside the first.
        worst: number of the worst mistakes to show.
        data_dir: folder of the data set; None: each run's.
        command: the command line, which the page names.

    Returns:
        The page's file.

    Raises:
        InputError: a folder is not a run, or the file cannot be written.
    """
    cli.at_least(0, worst=worst)
    file = epath.Path(out or _file(runs))
    runs = [run for path in runs for run in many_runs.runs_in(path)]
    if out and not file.parent.exists():  # raised before the networks are tested
        raise missing_folder(file)
    parallel.choose_devices(None, parallel.cpu_cores())  # before JAX is used
    records = [
        read(path, label, worst=worst, data_dir=data_dir)
        for path, label in zip(runs, labels(runs), strict=True)
    ]
    replace_file(file, report_page.page(records, command=command))
    print(f"Report: {file}")
    return file


def _file(folders):
    if len(folders) == 1:
        return epath.Path(folders[0]) / "report.html"
    names = "-".join(map(plain, labels(folders)))
    if len(names) > _LONGEST_NAME:
        number = zlib.crc32(names.encode())  # tells names apart that begin alike
        names = f"{names[:_LONGEST_NAME]}-and-more-{number:08x}"
    return epath.Path(folders[0]).parent / f"report-of-{names}.html"


def labels(paths: Sequence[str]) -> list[str]:
    """Return the names of the runs' folders, with as much of the path as is needed.

    Of the folders of a sweep, that is the values in which they differ.

    Raises:
        InputError: a folder is named twice.
    """
    parts = [epath.Path(path).resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise InputError("A run is named twice: name it once.")
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-length:]) for part in parts]
        if len(set(found)) == len(found):
            return _differences(found)
    raise AssertionError("whole paths differ")


def _differences(names):
    """Return what tells a sweep's names apart, "field=value" with short fields.

    Return other names as they are.
    """
    split = [re.split(r"/|__|,(?=[\w.]+=)", name) for name in names]
    same = set.intersection(*map(set, split)) if len(names) > 1 else set()
    short = short_names({part.partition("=")[0] for parts in split for part in parts})
    found = []
    for parts in split:
        pairs = [part.partition("=") for part in parts if part not in same]
        found.append(
            ", ".join(short[name] + sign + value for name, sign, value in pairs)
        )
    of_a_sweep = all(found) and all("=" in name for name in names)
    return found if of_a_sweep and len(set(found)) == len(names) else names


def read(path: str, label: str, *, worst: int, data_dir: str | None = None) -> Record:
    """Read a run's files, and test its network if it has ended.

    Args:
        path: the run's folder, which is only read.
        label: name of the run in legends.
        worst: number of the worst mistakes to keep.
        data_dir: folder of the data set; None: as in training.

    Raises:
        InputError: there is no run, or its files are damaged or of another version.
    """
    folder = epath.Path(path)
    config = read_config(folder)
    workdir = Workdir(path, config)
    lines = workdir.lines("metrics.jsonl")
    spec = get_spec(config.dataset)
    summary = workdir.summary()
    diverged = None if summary else workdir.diverged()
    known: dict[str, Any] = {}
    if summary is None or not workdir.checkpoints.exists():
        reason = "has not ended"
        if summary:
            reason = "was kept without checkpoints"
        elif diverged:
            reason = f"diverged at step {diverged['steps']}"
        model, _ = make_network(config)
        known["unknown"] = f"{label} {reason}"
    else:
        run = trained.finished(path, data_dir=data_dir)
        model = run.model
        if model.stochastic_depth is not None:
            known["opened"] = run.opened
        known["confusion"], known["mistakes"] = _test(run, worst)
    if (depth := model.stochastic_depth) is not None:
        known["survival"] = np.asarray(survival_probs(depth, model.num_blocks))
    return Record(
        label=label,
        config=config,
        summary=summary,
        diverged=diverged,
        epochs=[line for line in lines if line.get("kind") == "epoch"],
        timing=workdir.lines("timing.jsonl"),
        studies=[
            (study.title, _caption(file), file.read_bytes())
            for name, study in STUDIES.items()
            if (file := folder / "analysis" / f"{name}.png").exists()
        ],
        class_names=spec.class_names or [str(k) for k in range(spec.num_classes)],
        **known,
    )


def _caption(figure):
    """Return the caption beside a figure, without its title; "" if there is none."""
    file = figure.with_suffix(".txt")
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return text.partition("\n\n")[2]


def _test(run: trained.Finished, worst: int) -> tuple[np.ndarray, list[Mistake]]:
    """Return the confusion matrix of the test images, and the worst mistakes."""
    probabilities = trained.make_probabilities(run)
    classes = get_spec(run.config.dataset).num_classes
    confusion = np.zeros((classes, classes), int)
    # A heap: the mistake with the least loss is dropped first.
    kept: list[tuple[float, int, int, Mistake]] = []
    batches = run.experiment.feed.eval_batches(
        "test", batch_size=run.experiment.eval_batch_size
    )
    for number, batch in enumerate(bar(batches, leave=False)):
        images, real = batch["image"], batch["mask"]
        views = images if images.ndim == 5 else images[:, None]
        found, truth = probabilities(views), batch["label"]
        guess = found.argmax(axis=1)
        np.add.at(confusion, (truth[real], guess[real]), 1)
        loss = -np.log(np.maximum(found[np.arange(len(truth)), truth], 1e-300))
        for i in np.flatnonzero(real & (guess != truth)):
            mistake = Mistake(
                image=np.array(views[i, 0]),
                label=int(truth[i]),
                predicted=int(guess[i]),
                probability=float(found[i, guess[i]]),
                loss=float(loss[i]),
            )
            heapq.heappush(kept, (mistake.loss, number, int(i), mistake))
            if len(kept) > worst:
                heapq.heappop(kept)
    return confusion, [mistake for *_, mistake in sorted(kept, reverse=True)]


if __name__ == "__main__":
    sys.exit(main())
