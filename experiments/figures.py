# SPDX-License-Identifier: Apache-2.0
"""Shared parts of figures: styles of lines, labels, and the file.

Lines differ by grey, dashes and markers, so that they can be distinguished in black and
white. Figures are drawn without a display.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

T = TypeVar("T")

STYLES: tuple[dict[str, Any], ...] = (
    {"color": "0.0", "linestyle": "-", "marker": "o"},
    {"color": "0.5", "linestyle": "--", "marker": "s"},
    {"color": "0.3", "linestyle": ":", "marker": "^"},
    {"color": "0.7", "linestyle": "-.", "marker": "D"},
    {"color": "0.0", "linestyle": "--", "marker": "v"},
    {"color": "0.5", "linestyle": "-", "marker": "P"},
)
# The marker of a block that changes the shape.
HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markersize": 9}


def styled(values: Mapping[str, T]) -> Iterator[tuple[str, T, dict[str, Any]]]:
    """Yield each label with its value and the style of its line."""
    for (label, value), style in zip(
        values.items(), itertools.cycle(STYLES), strict=False
    ):
        yield label, value, style


def panels(
    count: int = 1, width: float = 8, height: float = 4.5, **sharing: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure, with its size in inches, and its panels in a row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **sharing)[0])


def finish(axes: Axes, **settings: Any) -> None:
    """Set what `Axes.set` takes, and add a grid and a legend."""
    axes.set(**settings)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def as_text(label: str) -> str:
    """Escape a label, such as a folder's name, so that Matplotlib shows it unchanged.

    Text between two "$" would be mathematics, and a label that begins with "_" would be
    left out of legends.
    """
    text = label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def save(figure: Figure, path: epath.PathLike) -> None:
    """Write a figure as PNG, and make its folder."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, warnings.catch_warnings():
        # A folder's name in a legend may have characters that the font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(file, format="png", dpi=120)
