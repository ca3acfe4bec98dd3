# SPDX-License-Identifier: Apache-2.0
"""Train all combinations of some fields' values, into one table and one figure.

python -m experiments.sweep CONFIG[:DATASET] --grid FIELD=VALUE,VALUE,... [--grid ...]
    [--FIELD=VALUE ...] [--workdir=DIR] [--seeds=N]

    --grid stochastic_depth.last_survival=0.2,0.5,1.0
    --grid model=resnet20,resnet32,resnet56
"""

import functools
import itertools
import json
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from etils import epath

from configs.default import Config
from experiments import cli, figures, sweep_plots
from experiments.config import field_of, load_config, overrides, short_names
from experiments.markdown import table
from experiments.training import many_runs
from rn_jax.errors import InputError
from rn_jax.filesystem import make_folder, plain, replace_file


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.Parser(__doc__, sweep).call(
        argv, interrupted="Interrupted before the first run."
    )


def sweep(
    arguments: Sequence[str] = (),
    *,
    grid: Annotated[Sequence[str], {"action": "append"}] = (),
    workdir: cli.Path | None = None,
    seeds: many_runs.Seeds | None = None,
    style: figures.Style = figures.DEFAULT,
    command: str = "experiments.sweep.sweep(...)",
) -> None:
    """Train every combination of values, and write the table and the figure.

    Args:
        arguments: options of the config, for `load_config`.
        grid: a field and its values, FIELD=VALUE,VALUE; the option may be repeated.
        workdir: folder of the sweep; None: a new one under runs/.
        seeds: number of seeds for every combination, or a list of them.
        style: style and formats of the figures.
        command: the command line, which the table names.

    Raises:
        InputError: bad input that the user can correct.
    """
    chosen = None if seeds is None else many_runs.parse_seeds(seeds)
    name, base = load_config(arguments)
    axes = [parse_axis(text) for text in grid]
    if not axes:
        raise InputError("Name a field, such as --grid batch_size=64,128.")
    if chosen is not None and "seed" in dict(axes):
        raise InputError("Set seeds by --seeds or by --grid config.seed, not by both.")
    rows = combinations(arguments, axes)
    workdir = workdir or cli.new_workdir(f"sweep-{name}-{base.dataset}")
    names = folder_names([values for values, _ in rows])
    for i, (values, _) in enumerate(rows):  # a sweep of an earlier version continues
        if (epath.Path(workdir) / _earlier_name(values)).exists():
            names[i] = _earlier_name(values)
    jobs = [
        many_runs.Job(folder, config)
        for folder, (_, config) in zip(names, rows, strict=True)
    ]
    title = ", ".join([f"{name} on {base.dataset}", *overrides(arguments)])
    header: dict[str, Any] = {"command": command, "config": name}
    header |= {"overrides": overrides(arguments)}
    header |= {"dataset": base.dataset, "seeds": chosen}

    def report(results):
        shown = [
            {"values": values, "folder": job.name, **result}
            for (values, _), job, result in zip(rows, jobs, results, strict=True)
        ]
        write(epath.Path(workdir), header, shown, title)

    with figures.using(style):
        many_runs.train(jobs, workdir, seeds=chosen, command=command, report=report)
    print(f"Table: {epath.Path(workdir) / 'table.md'}")


def parse_axis(text: str) -> tuple[str, list[str]]:
    """Return the field and the values of "FIELD=a,b,c" or "config.FIELD=a,b,c".

    Commas within brackets do not separate values: "(0.5,0.75),(0.3,0.6)" is two.

    Raises:
        InputError: the text has another form, or a value is empty.
    """
    found = re.fullmatch(r"(?:--)?(?:config\.)?([\w.]+)=(.*)", text, re.S)
    values = [""]
    for character in found[2] if found else "":
        last = values[-1]
        depth = sum(map(last.count, "([{")) - sum(map(last.count, ")]}"))
        if character == "," and depth <= 0:
            values.append("")
        else:
            values[-1] += character
    values = [value.strip() for value in values]
    if found is None or not all(values):
        raise InputError(
            "--grid must be a field and its values, such as batch_size=64,128, not "
            f"{text!r}."
        )
    return found[1], values


def combinations(
    arguments: Sequence[str], axes: Sequence[tuple[str, list[str]]]
) -> list[tuple[dict[str, Any], Config]]:
    """Return the values by field, and the config, of each combination.

    The last field changes fastest. `axes` are fields and their values, as text, and
    `arguments` the other options of the config, for `load_config`.

    Raises:
        InputError: a field does not exist or is named twice, or has the same value
            twice or a value of a wrong type.
    """
    names = [field for field, _ in axes]
    for field, texts in axes:
        alone = [a for a in arguments if re.match(rf"--?(no)?config\.{field}(=|$)", a)]
        if names.count(field) > 1 or alone:
            raise InputError(f"config.{field} is set twice: name it in one --grid.")
        values = [field_of(_with(arguments, [(field, text)]), field) for text in texts]
        for value in values:
            if values.count(value) > 1:
                raise InputError(f"--grid config.{field} has the value {value} twice.")
    found = []
    for chosen in itertools.product(*(texts for _, texts in axes)):
        config = _with(arguments, zip(names, chosen, strict=True))
        found.append(({n: field_of(config, n) for n in names}, config))
    return found


def _with(arguments, values):
    added = [f"--config.{field}={text}" for field, text in values]
    return load_config([*arguments, *added])[1]


def folder_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return names such as "model=resnet20__last_survival=0.5", each another one.

    They consist of letters, digits and ".=+-_" alone. `rows` are the values of each
    combination by field.
    """
    names: list[str] = []
    for values in rows:
        short = short_names(values)
        name = "__".join(
            f"{short[field]}={plain(str(value)).strip('_')}"
            for field, value in values.items()
        )
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        free = (n for n in itertools.chain([name], numbered) if n not in names)
        names.append(next(free))
    return names


def _earlier_name(values):
    """Return the name of the folder in versions before 0.1."""
    return ",".join(plain(f"{field}={value}") for field, value in values.items())


def write(
    folder: epath.Path,
    header: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    title: str,
) -> None:
    """Write sweep.json, table.md and, once a run has ended, the figure.

    Args:
        folder: where the files go.
        header: first fields of sweep.json: command, config, overrides, dataset, seeds.
        rows: the values of each combination by field, and its `many_runs.results`.
        title: title of the table.
    """
    make_folder(folder)
    text = json.dumps({**header, "rows": list(rows)}, indent=1)
    replace_file(folder / "sweep.json", text + "\n")
    ended = [row for row in rows if row["n"]]
    at_best = bool(ended) and all(row[many_runs.AT_BEST] for row in ended)
    columns = {"test error (%)": many_runs.LAST}
    if at_best:
        columns["at the best validation epoch (%)"] = many_runs.AT_BEST
    body = [
        [
            *map(str, row["values"].values()),
            *(many_runs.error_cell(row, name) for name in columns.values()),
            *many_runs.size_cells(row),
        ]
        for row in rows
    ]
    head = [*short_names(rows[0]["values"]).values(), *columns, *many_runs.SIZE_HEAD]
    lines = [f"# {title}", "", f"    {header['command']}", "", *table(head, body)]
    if ended:
        label = list(columns)[-1]
        name = columns[label]
        seeds = max(row["n"] for row in ended)
        of = "one run"
        if seeds > 1:
            of = f"mean and standard deviation over {seeds} seeds,"
        draw = functools.partial(
            sweep_plots.draw,
            [row["values"] for row in rows],
            [row[name]["mean"] if row["n"] else None for row in rows],
            [row[name]["std"] if row["n"] else None for row in rows],
            label="test error (%)",
        )
        figures.save(
            draw,
            folder / "sweep",
            title=f"{header['config']} on {header['dataset']}",
            caption=f"Test error {many_runs.PROTOCOLS[name]}, {of} of {title}. "
            f"Command: {header['command']}",
        )
        lines += ["", "![Test error](sweep.png)"]
    replace_file(folder / "table.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    sys.exit(main())
