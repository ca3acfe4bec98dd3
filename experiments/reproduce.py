# SPDX-License-Identifier: Apache-2.0
"""Train the rows of a paper's table, and write our numbers beside the paper's.

python -m experiments.reproduce --table=NAME [--only=ROWS] [--seeds=N]
    [--scale=FRACTION] [--dataset=NAME] [--workdir=DIR] [--keep=DIR]
    [--FIELD=VALUE ...]
python -m experiments.reproduce --keep=DIR
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

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
from experiments.papers.tables import TABLES, Table
from experiments.training import many_runs
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
    style: figures.Style = figures.DEFAULT,
    command: str = "experiments.reproduce.reproduce(...)",
) -> None:
    """Train the rows of a table; with `keep` alone, write the page of all results.

    Args:
        arguments: options that override fields of the configs.
        table: name of the table.
        only: names of rows, with commas between; None: all.
        seeds: number of seeds for every row, or a list of them.
        scale: fraction of each schedule's length, to rehearse.
        dataset: data set of all rows; None: the table's own.
        workdir: folder of the table; None: a new one under runs/.
        keep: folder of all results, into which finished runs are copied.
        style: style and formats of the figures.
        command: the command line, which the table names.

    Raises:
        InputError: bad input that the user can correct.
    """
    given = [table, only, seeds, dataset, workdir, *arguments]
    if keep and scale == 1 and not any(given):
        with figures.using(style):
            print(f"Page: {results_page.write(epath.Path(keep))}")
        return
    if table is None or table not in TABLES:
        raise unknown_name("table", table or "", TABLES)
    if not 0 < scale <= 1:
        raise InputError(f"--scale must be in (0, 1], not {scale:g}.")
    if any(re.match("--?config(=|$)", argument) for argument in arguments):
        raise InputError("The rows of a table are its configs: choose them by --only.")
    chosen = None if seeds is None else many_runs.parse_seeds(seeds)
    rows = entries(TABLES[table], only, dataset, arguments, scale)
    jobs = [many_runs.Job(f"{e.row}-{e.dataset}", e.config) for e in rows]
    folder = workdir or cli.new_workdir(f"reproduce-{table}")
    header = {
        "command": command,
        "table": table,
        "title": TABLES[table].title,
        "published": TABLES[table].published_of,
        "scale": scale,
        "overrides": overrides(arguments),
        "seeds": chosen,
    }

    def report(results):
        write(epath.Path(folder), header, TABLES[table], rows, results)
        if keep:
            runs = [run for job in jobs for run in many_runs.runs(job, folder, chosen)]
            results_page.keep(runs, folder, table, epath.Path(keep))

    with figures.using(style):
        many_runs.train(jobs, folder, seeds=chosen, command=command, report=report)
    results = many_runs.results(jobs, folder, chosen)
    for compared in differences(TABLES[table], rows, results):
        print(compared["says"], "A rehearsal." if scale != 1 else "")
    print(f"Table: {epath.Path(folder) / 'table.md'}")


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
