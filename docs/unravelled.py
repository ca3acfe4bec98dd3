# SPDX-License-Identifier: Apache-2.0
"""Draw docs/unravelled.png: three residual blocks, and their paths one by one.

python -m docs.unravelled

As in Veit et al. 2016, figures 1 and 2: on the left the network, on the right its
2^3 paths by length, grey where they end if block 2 is deleted.
"""

import itertools
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PATH = Path(__file__).parent / "unravelled.png"
BLOCKS = 3
DELETED = 2
BOX = {"boxstyle": "round,pad=0.35", "facecolor": "white"}
CIRCLE = {"boxstyle": "circle,pad=0.2", "facecolor": "white"}


def paths() -> list[tuple[int, ...]]:
    """Return the blocks, from 1, whose branch each path takes, the shortest first."""
    blocks = range(1, BLOCKS + 1)
    lengths = (itertools.combinations(blocks, k) for k in range(BLOCKS + 1))
    return [path for of_length in lengths for path in of_length]


def draw() -> Figure:
    """Draw the picture."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    network, unravelled = figure.subplots(1, 2, width_ratios=[1, 1.15])
    _network(network)
    _unravelled(unravelled)
    return figure


def _network(axes: Axes) -> None:
    """Draw the blocks from left to right, with their shortcuts above them."""
    axes.set(xlim=(-0.6, 2.0 * BLOCKS + 0.9), ylim=(-1.6, 2.2))
    axes.axis("off")
    axes.set_title(f"{BLOCKS} residual blocks", fontsize=10)
    axes.plot([-0.2, 2.0 * BLOCKS + 0.3], [0, 0], color="black", linewidth=1)
    for block in range(1, BLOCKS + 1):
        start, end = 2.0 * block - 1.7, 2.0 * block
        axes.plot([start, start, end, end], [0, 1, 1, 0], color="black", linewidth=1)
        axes.text(
            (start + end) / 2, 0, f"$f_{block}$", ha="center", va="center", bbox=BOX
        )
        axes.text(end, 0, "+", ha="center", va="center", bbox=CIRCLE)
    axes.text(-0.3, 0, "$x$", ha="right", va="center")
    axes.text(2.0 * BLOCKS + 0.4, 0, "$y$", ha="left", va="center")


def _unravelled(axes: Axes) -> None:
    """Draw a row for each path, from the shortest on top to the longest."""
    rows = paths()
    axes.set(xlim=(-0.5, BLOCKS + 2.4), ylim=(len(rows) - 0.4, -0.6))
    axes.axis("off")
    axes.set_title(
        f"its $2^{BLOCKS}$ = {len(rows)} paths; deleting $f_{DELETED}$ leaves "
        f"{len(rows) // 2}",
        fontsize=10,
    )
    for row, path in enumerate(rows):
        color = "0.7" if DELETED in path else "black"
        axes.plot([0, BLOCKS + 1], [row, row], color=color, linewidth=1)
        for block in path:
            box = {**BOX, "edgecolor": color}
            place = {"ha": "center", "va": "center", "color": color}
            axes.text(block, row, f"$f_{block}$", **place, bbox=box, fontsize=9)
        axes.text(-0.1, row, "$x$", ha="right", va="center", color=color)
        axes.text(
            BLOCKS + 1.1,
            row,
            f"length {len(path)}",
            va="center",
            color=color,
            fontsize=9,
        )


if __name__ == "__main__":
    draw().savefig(PATH, dpi=120)
    print(PATH)
