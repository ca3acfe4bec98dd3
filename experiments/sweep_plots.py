# SPDX-License-Identifier: Apache-2.0
"""The figure of a sweep: lines, a heat map or dots, by the number of numeric fields."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import figures
from experiments.figures import as_text, styled

Values = Mapping[str, Any]


def draw(
    rows: Sequence[Values],
    means: Sequence[float | None],
    deviations: Sequence[float | None],
    *,
    title: str,
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
        title: title of the figure.
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
        kinds.setdefault(", ".join(f"{n} {row[n]}" for n in others), []).append(i)
    if len(numbers) == 1:
        figure = _lines(numbers, kinds, error, spread, label)
    elif len(numbers) == 2:
        figure = _heat_maps(rows, numbers, kinds, error, label)
    else:
        figure = _dots(rows, error, spread, label)
    figure.suptitle(as_text(title), fontsize="small")
    return figure


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


def _lines(numbers, kinds, error, spread, label):
    figure, [axes] = figures.panels(1, 7)
    [(name, x)] = numbers.items()
    x = np.array(x)
    for kind, places, style in styled(kinds):
        places = np.array(places)[np.argsort(x[places], kind="stable")]
        wide = None if np.isnan(spread[places]).all() else spread[places]
        look = {**style, "markersize": 4, "capsize": 3, "label": kind}
        axes.errorbar(x[places], error[places], wide, **look)
    axes.set(xlabel=name, ylabel=label, ylim=(0, None))
    axes.grid(alpha=0.3)
    if len(kinds) > 1:
        axes.legend(fontsize="small")
    return figure


def _heat_maps(rows, numbers, kinds, error, label):
    """Draw the first field rightwards and the second upwards, a panel for each kind."""
    (across, x), (up, y) = numbers.items()
    columns, levels = sorted(set(x)), sorted(set(y))
    size = (1.6 + len(kinds) * (1 + 0.9 * len(columns)), 1.6 + 0.6 * len(levels))
    figure, panels = figures.panels(len(kinds), *size, sharey=True)
    low, high = np.nanmin(error), np.nanmax(error)
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    for axes, (kind, places) in zip(panels, kinds.items(), strict=True):
        grid = np.full((len(levels), len(columns)), np.nan)
        for i in places:
            grid[levels.index(y[i]), columns.index(x[i])] = error[i]
        image = axes.imshow(
            grid, cmap="Greys", vmin=low, vmax=high, origin="lower", aspect="auto"
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
        axes.set(xlabel=across, title=kind)
    panels[0].set_ylabel(up)
    figure.colorbar(image, ax=panels, label=label)
    return figure


def _dots(rows, error, spread, label):
    figure, [axes] = figures.panels(1, 8, 1.2 + 0.3 * len(rows))
    names = [", ".join(f"{n} {v}" for n, v in row.items()) for row in rows]
    place = np.arange(len(rows))[::-1]  # the first at the top
    wide = None if np.isnan(spread).all() else spread
    axes.errorbar(error, place, xerr=wide, fmt="ko", markersize=4, capsize=3)
    axes.set_yticks(place, names, fontsize="small")
    axes.set(xlabel=label, xlim=(0, None), ylim=(-0.5, len(rows) - 0.5))
    axes.grid(alpha=0.3)
    return figure
