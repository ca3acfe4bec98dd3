# SPDX-License-Identifier: Apache-2.0
"""What figures share: how lines over each other look, labels, and the file.

Lines differ by grey, dashes and markers, so that they can be told apart in black and
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


def styled(values: Mapping[str, T]) -> Iterator[tuple[str, T, dict[str, Any]]]:
    """Yield each label with its value and the style of its line."""
    for (label, value), style in zip(
        values.items(), itertools.cycle(STYLES), strict=False
    ):
        yield label, value, style


def panels(
    count: int = 1, width: float = 8, height: float = 4.5, **sharing: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure, in inches, and its panels, which stand in a row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **sharing)[0])


def finish(axes: Axes, **settings: Any) -> None:
    """Set what `Axes.set` takes, and add a grid and a legend."""
    axes.set(**settings)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def as_text(label: str) -> str:
    """Return a label that Matplotlib shows as it is, which may be any folder's name.

    It takes what stands between two "$" for mathematics, and leaves labels that begin
    with "_" out of legends.
    """
    text = label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def save(figure: Figure, path: epath.PathLike) -> None:
    """Write the PNG, and make the folder it lies in."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, warnings.catch_warnings():
        # A folder's name, in a legend, may have characters that the font has not.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(file, format="png", dpi=120)
