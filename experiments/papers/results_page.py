# SPDX-License-Identifier: Apache-2.0
"""The page of all results: every row of `TABLES` beside its runs.

FOLDER/runs/TABLE/ROW-DATASET/seedN keeps config.json, metrics.jsonl and summary.json,
or diverged.json, of a run that has ended; of an unfinished run, only the first two.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from configs.default import Config
from experiments import cli, figures
from experiments.config import as_json, read_config, read_fields
from experiments.markdown import table as markdown
from experiments.papers.entries import (
    Entry,
    differences,
    entries,
    published_cell,
    shorten,
)
from experiments.papers.tables import TABLES, Table
from experiments.training import many_runs
from experiments.training.feed import count_train
from experiments.training.workdir import FREE, read_epochs, read_lines
from rn_jax.filesystem import make_folder, read_json, replace_file

KEPT = ("config.json", "metrics.jsonl", "summary.json", "diverged.json")

# Fields in which the runs of a row may differ without a remark.
_FREE = FREE | {"seed", "checkpoint_every_steps", "log_every_steps"}
# Fields that papers leave open or that hardly matter: a remark, but no star.
_OPEN = {"eval_every_epochs", "eval_every_steps", "momentum_form"}
_STAR = "\\*"

_HEADER = """# Results

`python -m experiments.reproduce --keep=results` writes this page from the summaries in
[runs](runs); every command below updates it. Rows without an error have not been run
to the end. Errors are the statistic that the paper prints of its own runs
(mean, median or best), and "±" is the standard deviation. Training losses, without the
weight penalty, and times are means. A star marks a schedule that was shortened in
proportion, to the epochs in its column, or other deviations from the paper that are
listed below the table: such a number says nothing about the paper's.
[Reproduction](../docs/reproduction.md) discusses what is reproduced so far;
[measurements](measurements.md) has times, memory and studies, and [LOG.md](LOG.md) what
was tried, with its outcome.
"""

_COLUMNS = (
    *("train loss", "runs", "epochs", "hardware", "time of a run"),
    *("command", "commit"),
)


def keep(
    runs: Sequence[tuple[str, Config]], workdir: str, table: str, folder: epath.Path
) -> None:
    """Copy the kept files of runs, and update the page.

    A finished run replaces those of another config, finished or not, that have fewer
    steps. A run that diverged replaces none that finished. An unfinished one replaces
    only an earlier state of itself.

    Args:
        runs: folder and config of each run, see `many_runs.runs`.
        workdir: the folder that holds their folders.
        table: name in TABLES.
        folder: folder of the page.
    """
    for path, config in runs:
        source = epath.Path(path)
        row = folder / "runs" / table / source.relative_to(workdir).parts[0]
        place = row / f"seed{config.seed}"
        end = _end(source)
        if not end and not _last_step(source):
            continue
        fields = _fields(source)
        others = [p for p in _places(row) if _differing(fields, _fields(p))]
        if not end:
            if others:
                print(f"{row} keeps its runs; remove it to keep {path} instead.")
            elif not _kept(row) and _last_step(source) > _last_step(place):
                _copy(source, place)
            continue
        lasting = [p for p in others if not (p / "diverged.json").exists()]
        if "reason" in end and any(
            (p / "summary.json").exists() for p in [*lasting, place]
        ):
            print(f"{row} keeps its finished runs: {path} diverged.")
            continue
        if any(_last_step(p) > _last_step(source) for p in lasting):
            print(f"{row} keeps its longer runs; remove it to keep {path} instead.")
            continue
        if others:
            row.rmtree()
        _copy(source, place)
    write(folder)


def _copy(source, place):
    make_folder(place)
    for file in KEPT:
        if (source / file).exists():
            replace_file(place / file, (source / file).read_bytes())
        else:
            (place / file).unlink(missing_ok=True)


def write(folder: epath.Path) -> epath.Path:
    """Write README.md about the runs of a folder, and return its path.

    Each table with runs gets a figure.
    """
    make_folder(folder)
    for name, table in TABLES.items():
        curves = {
            f"{row.name}, {place.name}": read_epochs(place)
            for row in _below(folder / "runs" / name)
            for place in _places(row)
        }
        if curves:
            figures.save(
                functools.partial(draw, curves),
                folder / "runs" / name / "curves",
                title=table.title,
                caption="Training loss, without the weight penalty, and test error by "
                f"epoch, a line for each seed: {', '.join(curves)}. The config of each "
                "run is in its config.json.",
            )
    replace_file(folder / "README.md", cli.as_called(page(folder), on_page=True))
    return folder / "README.md"


def page(folder: epath.Path) -> str:
    """Return the text of README.md for the runs in the folder."""
    parts = [_HEADER]
    for name, table in TABLES.items():
        found = entries(table, None, None, [], 1)
        folders = [_row(folder, name, entry) for entry in found]
        kept = list(map(_kept, folders))
        results = list(map(_together, kept))
        head = ["row", "data set", f"published (%), {table.published_of}"]
        body = [
            _cells(table, entry, row, runs, result)
            for entry, row, runs, result in zip(
                found, folders, kept, results, strict=True
            )
        ]
        parts += [f"## {table.title}", ""]
        parts += markdown([*head, f"ours (%), {table.statistic}", *_COLUMNS], body)
        run = [
            (entry, _fields(places[0]))
            for entry, places in zip(found, map(_places, folders), strict=True)
            if places
        ]
        changed = {(e.row, e.dataset) for e, fields in run if _mark(e, fields)}
        for line in differences(table, found, results):
            pair = {(row, line["dataset"]) for row in line["rows"]}
            parts += ["", f"- {line['says']}{_STAR if pair & changed else ''}"]
        changes: dict[str, list[str]] = {}
        for entry, fields in run:
            if other := _otherwise(entry, fields):
                what = ", ".join(f"{f}={fields[f]}" for f in sorted(other))
                changes.setdefault(what, []).append(f"{entry.row} ({entry.dataset})")
        for what, rows in changes.items():
            parts += ["", f"- {', '.join(rows)}: with {what}."]
        if run:
            parts += ["", f"![Loss and error by epoch](runs/{name}/curves.png)"]
        parts.append("")
    return "\n".join(parts)


def rows_with_runs(folder: epath.Path) -> str:
    """Return a table of the rows that have been run, except on digits."""
    body = []
    for name, table in TABLES.items():
        for entry in entries(table, None, None, [], 1):
            if entry.dataset == "digits":
                continue
            row = _row(folder, name, entry)
            if runs := _kept(row):
                cells = _cells(table, entry, row, runs, _together(runs))
                title = table.title.removeprefix("Not from a paper: ").partition(":")[0]
                body.append([title, *cells[:4], *cells[5:7]])
    head = ["table", "row", "data set", "published (%)", "ours (%)", *_COLUMNS[1:3]]
    return "\n".join(markdown(head, body))


def _row(folder, table, entry):
    return folder / "runs" / table / f"{entry.row}-{entry.dataset}"


def _places(row):
    """Return the folders of the runs of a row."""
    return [place for place in _below(row) if (place / "config.json").exists()]


def _below(folder):
    """Return the contents of a folder; none if it does not exist."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _kept(row):
    """Return the config, and the summary or the divergence, of each run of a row."""
    return [(_fields(place), end) for place in _places(row) if (end := _end(place))]


def _end(folder):
    """Return summary.json, or else diverged.json; None for a run in progress."""
    for name in ("summary.json", "diverged.json"):
        if (folder / name).exists():
            return read_json(folder / name)
    return None


def _together(runs):
    """Combine the runs of a row, as `many_runs.results` does."""
    diverged = [end for _, end in runs if "reason" in end]
    found = many_runs.together([end for _, end in runs if "reason" not in end])
    return {"state": "diverged" if diverged else "finished", **found}


def _fields(place):
    return read_fields(place / "config.json")


def _last_step(place):
    """Return the last step that a run has logged, or 0."""
    lines = read_lines(place / "metrics.jsonl")
    return lines[-1]["step"] if lines else 0


def _differing(here, there):
    """Return the fields in which the training of two configs, as JSON, differs."""
    names = (set(here) | set(there)) - _FREE
    return {name for name in names if here.get(name) != there.get(name)}


def _otherwise(entry: Entry, fields):
    """Return the fields that differ, except those that are shortened in proportion."""
    unit = "steps" if entry.config.steps else "epochs"
    scale = (fields[unit] or 0) / getattr(entry.config, unit)
    if not 0 < scale < 1:
        return _differing(as_json(entry.config), fields)
    return _differing(as_json(shorten(entry.config, scale)), fields)


def _mark(entry: Entry, fields):
    return _STAR if _differing(as_json(entry.config), fields) - _OPEN else ""


def _cells(table: Table, entry: Entry, row, runs, result):
    """Return the cells of one row, given its folder and the runs that have ended."""
    start = [entry.row, entry.dataset, published_cell(entry)]
    length = entry.config.epochs or _epochs(entry.config.steps, entry.config)
    if not runs:
        run = max(_places(row), key=_last_step, default=None)
        seen = _epochs(_last_step(run), read_config(run)) if run else 0
        cell = f"{_short(seen)} of {_short(length)}"
        if run:
            cell += f", unfinished{_mark(entry, _fields(run))}"
        return [*start, "", "", "0", cell, "", "", "", ""]
    config, summary = min(runs, key=lambda run: "reason" in run[1])  # finished, if any
    seconds = result.get("wall_seconds", summary["wall_seconds"])
    mark = _mark(entry, config)
    loss = result.get("train_loss")
    return [
        *start,
        many_runs.error_cell(result, entry.error, table.statistic, mark),
        "" if loss is None else f"{loss:.3f}",
        str(result["n"]),
        f"{summary['epochs']:g} of {_short(length)}",
        _hardware(summary),
        f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min",
        _distinct(f"`{run['command']}`" for _, run in runs),
        _distinct((run["git_revision"] or "")[:7] for _, run in runs),
    ]


def _epochs(steps, config: Config):
    return steps * config.batch_size / count_train(config)


def _short(number):
    return f"{number:.3g}" if number < 10 else f"{number:.0f}"


def _distinct(texts):
    return ", ".join(dict.fromkeys(texts))


def _hardware(summary):
    machine = summary.get("machine")  # older runs lack it
    if machine is None or "accelerator" in machine:
        return summary["devices"]
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    return f"{machine['cpu']}, {cores}, {machine['memory_gib']} GiB"


def draw(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> figures.Figure:
    """Draw training loss and test error by epoch of several runs.

    Args:
        curves: lines "epoch" of metrics.jsonl, by name of the run. Names with the same
            text before a comma are seeds of one row, and have one look.
    """
    figure, (loss, error) = figures.panels(2, aspect=0.8)
    rows = dict.fromkeys(name.partition(",")[0] for name in curves)
    looks = {row: style for row, _, style in figures.styled(rows)}
    for axes, name in ((loss, "train_loss"), (error, "test_error_percent")):
        for run, lines in curves.items():
            row = run.partition(",")[0]
            at, values = ([line[key] for line in lines] for key in ("epoch", name))
            axes.plot(at, values, **looks[row], label=row)
    figures.finish(loss, xlabel="epoch", ylabel="training loss (nats)")
    figures.scale_loss(loss)
    figures.finish(error, xlabel="epoch", ylabel="test error (%)", ylim=(0, None))
    return figure
