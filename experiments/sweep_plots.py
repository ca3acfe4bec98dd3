# SPDX-License-Identifier: Apache-2.0
"""The figure of a sweep: lines, a heat map or dots, by the number of numeric fields."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import figures
from experiments.figures import as_text, styled

Values = Mapping[str, Any]

# The names of fields in papers, where they differ from the field's own words.
_NAMES = {
    "model": "network",
    "stochastic_depth.last_survival": "survival probability $p_L$",
    "stochastic_depth.schedule": "rule of $p_l$",
    "stochastic_depth.num_open": "open blocks $k$",
}


def name_of(field: str) -> str:
    """Return the name of a field of the config in a figure."""
    return _NAMES.get(field, field.rpartition(".")[2].replace("_", " "))


def draw(
    rows: Sequence[Values],
    means: Sequence[float | None],
    deviations: Sequence[float | None],
    *,
    label: str,
) -> figures.Figure:
    """Draw the error over one field, over two, or of each combination.

    With one numeric field, draw the error over it, with a line for each combination of
    the others; with two, a heat map for each combination of the others; else a dot for
    each combination.

    Args:
        rows: values of each combination by field.
        means: error of each combination; None: it has not ended.
        deviations: standard deviation of each error; None: it is of a single run.
        label: label of the error.
    """
    rows = [
        {n: as_text(v) if isinstance(v, str) else v for n, v in r.items()} for r in rows
    ]
    error, spread = np.array(means, float), np.array(deviations, float)  # None: NaN
    numbers = {name: found for name in rows[0] if (found := as_numbers(rows, name))}
    others = [n for n in rows[0] if n not in numbers and len(_distinct(rows, n)) > 1]
    kinds: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        kind = ", ".join(f"{name_of(n)} = {row[n]}" for n in others)
        kinds.setdefault(kind, []).append(i)
    if len(numbers) == 1:
        return _lines(rows, numbers, kinds, error, spread, label)
    if len(numbers) == 2:
        return _heat_maps(rows, numbers, kinds, error, label)
    return _dots(rows, error, spread, label)


def _distinct(rows, name):
    """Return the values of a field without repetitions."""
    return list({repr(row[name]): row[name] for row in rows}.values())


def as_numbers(rows: Sequence[Values], name: str) -> list[float] | None:
    """Return the number of a field in each row; None if the field is not numeric.

    Names that differ only in one number, such as resnet20 and resnet32, count as it. A
    field with a single value is not numeric.
    """
    values = [row[name] for row in rows]
    if len(_distinct(rows, name)) < 2:
        return None
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return values
    if not all(isinstance(value, str) for value in values):
        return None
    parts = [re.split(r"(\d+)", value) for value in values]
    if len({len(part) for part in parts}) > 1:
        return None
    columns = [i for i, c in enumerate(zip(*parts, strict=True)) if len(set(c)) > 1]
    if len(columns) != 1 or columns[0] % 2 == 0:  # odd: the digits
        return None
    return [int(part[columns[0]]) for part in parts]


def _lines(rows, numbers, kinds, error, spread, label):
    figure, [axes] = figures.panels()
    [(name, x)] = numbers.items()
    x = np.array(x)
    for kind, places, style in styled(kinds):
        places = np.array(places)[np.argsort(x[places], kind="stable")]
        wide = None if np.isnan(spread[places]).all() else spread[places]
        look = {**style, "capsize": 3, "label": kind}
        axes.errorbar(x[places], error[places], wide, **look)
    figures.finish(axes, xlabel=name_of(name), ylabel=label, ylim=(0, None))
    shown = {number: row[name] for number, row in zip(x.tolist(), rows, strict=True)}
    if any(isinstance(value, str) for value in shown.values()):  # such as resnet20
        axes.set_xticks(list(shown), list(shown.values()), rotation=30, ha="right")
    return figure


def _heat_maps(rows, numbers, kinds, error, label):
    """Draw the first field rightwards and the second upwards, a panel for each kind."""
    (across, x), (up, y) = numbers.items()
    columns, levels = sorted(set(x)), sorted(set(y))
    height = 1 + 0.35 * len(levels)
    figure, panels = figures.panels(len(kinds), height=height, sharey=True)
    low, high = np.nanmin(error), np.nanmax(error)
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    for axes, (kind, places) in zip(panels, kinds.items(), strict=True):
        grid = np.full((len(levels), len(columns)), np.nan)
        for i in places:
            grid[levels.index(y[i]), columns.index(x[i])] = error[i]
        image = axes.imshow(
            grid,
            cmap=figures.COLOUR_MAP,
            vmin=low,
            vmax=high,
            origin="lower",
            aspect="auto",
        )
        for (row, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                colour = "white" if value > (low + high) / 2 else "black"
                axes.text(column, row, f"{value:.2f}", color=colour, **centred)
        shown = {n: dict(zip(numbers[n], rows, strict=True)) for n in (across, up)}
        axes.set_xticks(
            range(len(columns)), [str(shown[across][c][across]) for c in columns]
        )
        axes.set_yticks(range(len(levels)), [str(shown[up][v][up]) for v in levels])
        axes.set(xlabel=name_of(across), ylabel=name_of(up), title=kind)
    figure.colorbar(image, ax=panels, label=label)
    return figure


def _dots(rows, error, spread, label):
    figure, [axes] = figures.panels(height=0.8 + 0.22 * len(rows))
    names = [", ".join(f"{name_of(n)} = {v}" for n, v in row.items()) for row in rows]
    place = np.arange(len(rows))[::-1]  # the first at the top
    wide = None if np.isnan(spread).all() else spread
    look = {**figures.look(0), "linestyle": ""}
    axes.errorbar(error, place, xerr=wide, capsize=3, **look)
    axes.set_yticks(place, names)
    limits = {"xlim": (0, None), "ylim": (-0.5, len(rows) - 0.5)}
    figures.finish(axes, xlabel=label, ylabel="", **limits)
    return figure
