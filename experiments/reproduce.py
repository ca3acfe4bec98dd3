# SPDX-License-Identifier: Apache-2.0
"""Train the rows of a paper's table, and write our numbers beside the paper's.

python -m experiments.reproduce --table=NAME [--only=ROWS] [--seeds=N]
    [--scale=FRACTION] [--dataset=NAME] [--workdir=DIR] [--keep=DIR]
    [--budget=SECONDS] [--at_once=N] [--FIELD=VALUE ...]
python -m experiments.reproduce --budget=SECONDS --workdir=DIR ...
python -m experiments.reproduce --keep=DIR
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from etils import epath

from experiments import cli, figures
from experiments.config import overrides
from experiments.markdown import table as markdown
from experiments.papers import results_page
from experiments.papers.entries import (
    Entry,
    differences,
    entries,
    our_error,
    published_cell,
)
from experiments.papers.tables import NEXT, NEXT_DATASET, TABLES, Table
from experiments.training import many_runs, within_budget
from rn_jax.errors import InputError, unknown_name
from rn_jax.filesystem import make_folder, replace_file


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.Parser(__doc__, reproduce).call(
        argv, interrupted="Interrupted before the first run."
    )


def reproduce(
    arguments: Sequence[str] = (),
    *,
    table: Annotated[str | None, {"help": f"one of {', '.join(TABLES)}"}] = None,
    only: str | None = None,
    seeds: many_runs.Seeds | None = None,
    scale: float = 1.0,
    dataset: str | None = None,
    workdir: cli.Path | None = None,
    keep: cli.Path | None = None,
    limits: within_budget.Budget = within_budget.NO_LIMIT,
    style: figures.Style = figures.DEFAULT,
    command: str = "experiments.reproduce.reproduce(...)",
    resumed_by: str | None = None,
) -> None:
    """Train the rows of a table; with `keep` alone, write the page of all results.

    With a budget, runs are trained in parallel and are stopped in time, and without a
    table they are those of `tables.NEXT`, each table in a folder of its own.

    Args:
        arguments: options that override fields of the configs.
        table: name of the table.
        only: names of rows, with commas between; None: all.
        seeds: number of seeds for every row, or a list of them.
        scale: fraction of each schedule's length, to rehearse.
        dataset: data set of all rows; None: the table's own.
        workdir: folder of the table; None: a new one under runs/.
        keep: folder of all results, into which finished runs are copied.
        limits: how long to train, and how many runs in parallel.
        style: style and formats of the figures.
        command: the command line, which the table names.
        resumed_by: the --workdir of `command` that resumes its runs, if it is not
            `workdir`; ignored with a budget.

    Raises:
        InputError: bad input that the user can correct.
    """
    given = [table, only, seeds, dataset, workdir, limits.budget, *arguments]
    if keep and scale == 1 and not any(given):
        with figures.using(style):
            print(f"Page: {results_page.write(epath.Path(keep))}")
        return
    if not 0 < scale <= 1:
        raise InputError(f"--scale must be in (0, 1], not {scale:g}.")
    if any(re.match("--?config(=|$)", argument) for argument in arguments):
        raise InputError("The rows of a table are its configs: choose them by --only.")
    if limits.budget is None and limits != within_budget.NO_LIMIT:
        raise InputError("--at_once needs --budget.")
    if limits.budget is not None and seeds is not None:
        raise InputError(
            "With --budget each row has one seed: choose it by --config.seed, not by "
            "--seeds."
        )
    chosen = None if seeds is None else many_runs.parse_seeds(seeds)
    folder = workdir or cli.new_workdir(f"reproduce-{table or 'next'}")
    header = {"command": command, "overrides": overrides(arguments), "seeds": chosen}
    if table is None and limits.budget is not None:
        if only is not None:
            raise InputError("--only names rows of a table: add --table.")
        on = dataset or NEXT_DATASET
        parts = [
            _part(name, rows, on, arguments, share * scale, header, f"{name}/")
            for name, rows, share in NEXT
        ]
    elif table in TABLES:
        parts = [_part(table, only, dataset, arguments, scale, header)]
    else:
        raise unknown_name("table", table or "", TABLES)
    jobs = [job for part in parts for job in part.jobs]

    def write_tables(results):
        for part, own in _shared(parts, results):
            place = epath.Path(folder) / part.folder
            write(place, part.header, TABLES[part.table], part.rows, own)

    def keep_runs():
        for part in parts if keep else []:
            runs = [r for job in part.jobs for r in many_runs.runs(job, folder, chosen)]
            place = os.path.join(folder, part.folder)
            results_page.keep(runs, place, part.table, epath.Path(keep))

    def report(results):
        write_tables(results)
        keep_runs()

    with figures.using(style):
        if limits.budget is None:
            many_runs.train(
                jobs,
                folder,
                seeds=chosen,
                command=command,
                report=report,
                resumed_by=resumed_by,
            )
        else:
            within_budget.train(
                jobs,
                folder,
                budget=limits.budget,
                at_once=limits.at_once,
                command=command,
                report=write_tables,
                at_end=keep_runs,  # drawing the page takes longer than runs can wait
            )
    for part, own in _shared(parts, many_runs.results(jobs, folder, chosen)):
        for compared in differences(TABLES[part.table], part.rows, own):
            print(compared["says"], "A rehearsal." if part.header["scale"] != 1 else "")
        print(f"Table: {epath.Path(folder) / part.folder / 'table.md'}")


class _Part(NamedTuple):
    """Rows of one table, and their jobs, whose names begin with `folder`."""

    table: str
    folder: str
    header: Mapping[str, Any]
    rows: Sequence[Entry]
    jobs: Sequence[many_runs.Job]


def _part(name, only, dataset, arguments, scale, header, folder=""):
    rows = entries(TABLES[name], only, dataset, arguments, scale)
    of_table = {
        "table": name,
        "title": TABLES[name].title,
        "published": TABLES[name].published_of,
        "scale": scale,
    }
    jobs = [many_runs.Job(f"{folder}{e.row}-{e.dataset}", e.config) for e in rows]
    return _Part(name, folder, {**header, **of_table}, rows, jobs)


def _shared(parts, results):
    """Yield each part with its share of the results of all jobs."""
    following = iter(results)
    for part in parts:
        yield part, [next(following) for _ in part.jobs]


def write(
    folder: epath.Path,
    header: Mapping[str, Any],
    table: Table,
    found: Sequence[Entry],
    results: Sequence[many_runs.Result],
) -> None:
    """Write table.md and table.json, for `many_runs.results` in the order of the rows.

    `header` has the first fields of table.json: command, title, scale, overrides, ...
    """
    make_folder(folder)
    shortened = header["scale"] != 1
    compared = differences(table, found, results)
    for line in compared:
        line["rehearsal"] = shortened
    rows = [
        {
            "row": entry.row,
            "dataset": entry.dataset,
            "published_error_percent": entry.published,
            "published_fail": entry.config.expected_to_fail,
            "error": entry.error,
            "statistic": table.statistic,
            "ours_error_percent": our_error(table, entry, result),
            "rehearsal": shortened,
            **result,
        }
        for entry, result in zip(found, results, strict=True)
    ]
    text = json.dumps({**header, "rows": rows, "differences": compared}, indent=1)
    replace_file(folder / "table.json", text + "\n")

    mark = "\\*" if shortened or header["overrides"] else ""
    statistics = dict.fromkeys((table.statistic, "mean"))
    head = ["row", "data set", f"published (%), {table.published_of}"]
    head += [f"ours (%), {name}" for name in statistics]
    body = [
        [
            entry.row,
            entry.dataset,
            published_cell(entry),
            *(many_runs.error_cell(result, entry.error, s, mark) for s in statistics),
            *many_runs.size_cells(result),
        ]
        for entry, result in zip(found, results, strict=True)
    ]
    lines = [f"# {table.title}", "", f"    {header['command']}", ""]
    lines += markdown([*head, *many_runs.SIZE_HEAD], body)
    lines += [""] + [f"- {line['says']}{mark}" for line in compared] if compared else []
    protocols = (many_runs.PROTOCOLS[entry.error] for entry in found)
    said = ", or ".join(dict.fromkeys(protocols))
    lines += ["", f"Ours are test errors {said}."]
    if shortened:
        lines += [
            "",
            f"\\* A rehearsal: every schedule is shortened to {header['scale']:g} of "
            "its length. These numbers say nothing about the paper's.",
        ]
    if header["overrides"]:
        changes = ", ".join(header["overrides"])
        lines += ["", f"\\* Unlike the paper: {changes}."]
    replace_file(folder / "table.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    sys.exit(main())
