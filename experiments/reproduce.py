# SPDX-License-Identifier: Apache-2.0
"""Trains the rows of a paper's table, and writes it with our numbers beside.

python -m experiments.reproduce --table=NAME [--only=ROWS] [--seeds=N]
    [--scale=FRACTION] [--dataset=NAME] [--workdir=DIR] [--keep=DIR]
    [--config.FIELD=VALUE ...]
python -m experiments.reproduce --keep=DIR
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from experiments import cli
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
from experiments.training import many_runs, seeds
from rn_jax.errors import InputError, unknown_name
from rn_jax.filesystem import make_folder, replace_file


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return cli.exit_code(
        lambda: _reproduce(argv), interrupted="Interrupted before the first run."
    )


def _reproduce(argv):
    parser = cli.Parser(__doc__)
    add, path = parser.add_argument, parser.add_path
    add("--table", help=f"of {', '.join(TABLES)}")
    add("--only", help="names of rows; default: all")
    add("--seeds", help="so many seeds, or a list, of every row")
    add("--scale", type=float, default=1.0, help="of the schedules' length: rehearses")
    add("--dataset", help="instead of the table's own")
    path("--workdir", help="folder of the table; default: a new one under runs/")
    path("--keep", help="folder of all tables, results: the runs' JSON goes there too")
    options, rest = parser.parse_with_config(argv)
    if options.keep and len(argv) == 1 + (argv[0] == "--keep"):
        print(f"Page: {results_page.write(epath.Path(options.keep))}")
        return
    if options.table not in TABLES:
        raise unknown_name("table", options.table or "", TABLES)
    if not 0 < options.scale <= 1:
        raise InputError(f"--scale must be in (0, 1], not {options.scale:g}.")
    chosen = None if options.seeds is None else seeds.parse(options.seeds)
    table = TABLES[options.table]
    found = entries(table, options.only, options.dataset, rest, options.scale)
    jobs = [many_runs.Job(f"{e.row}-{e.dataset}", e.config) for e in found]
    workdir = options.workdir or cli.new_workdir(f"reproduce-{options.table}")
    line = cli.as_typed("reproduce", argv)
    header = {
        "command": line,
        "table": options.table,
        "title": table.title,
        "published": table.published_of,
        "scale": options.scale,
        "overrides": overrides(rest),
        "seeds": chosen,
    }

    def report(results):
        write(epath.Path(workdir), header, table, found, results)
        if options.keep:
            runs = [run for job in jobs for run in many_runs.runs(job, workdir, chosen)]
            results_page.keep(runs, workdir, options.table, epath.Path(options.keep))

    many_runs.train(jobs, workdir, seeds=chosen, command=line, report=report)
    results = many_runs.results(jobs, workdir, chosen)
    for compared in differences(table, found, results):
        print(compared["says"], "A rehearsal." if options.scale != 1 else "")
    print(f"Table: {epath.Path(workdir) / 'table.md'}")


def write(
    folder: epath.Path,
    header: Mapping[str, Any],
    table: Table,
    found: Sequence[Entry],
    results: Sequence[many_runs.Result],
) -> None:
    """Writes table.md and table.json.

    Args:
        folder: where they go.
        header: what table.json begins with: command, title, scale, overrides, ...
        table: of TABLES.
        found: the rows.
        results: of `many_runs.results`, in the same order.
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

    changed = shortened or header["overrides"]
    mark = "\\*" if changed else ""
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
    protocols = {
        many_runs.LAST: "after the last epoch",
        many_runs.AT_BEST: "at the epoch of the best validation error",
    }
    lines += ["", f"Ours are test errors {_and(protocols[e.error] for e in found)}."]
    if shortened:
        lines += [
            "",
            f"\\* A rehearsal: every schedule is shortened to {header['scale']:g} of "
            "its length. These numbers say nothing about the paper's.",
        ]
    if header["overrides"]:
        said = ", ".join(header["overrides"])
        lines += ["", f"\\* Otherwise than in the paper: {said}."]
    replace_file(folder / "table.md", "\n".join([*lines, ""]))


def _and(parts):
    return ", or ".join(dict.fromkeys(parts))


if __name__ == "__main__":
    sys.exit(main())
