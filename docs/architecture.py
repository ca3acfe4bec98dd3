# SPDX-License-Identifier: Apache-2.0
"""Draw docs/architecture.png: the rooms of the project and what they import.

python -m docs.architecture

The arrows come from the import statements, those inside functions included.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.png"

# Where a room stands in the picture, from left (0) to right (1), and its modules. A
# package stands for all of its modules.
ROOMS = {
    "commands": (
        0.5,
        [
            "experiments.run",
            "experiments.sweep",
            "experiments.reproduce",
            "experiments.analyze",
            "experiments.claims",
            "experiments.evaluate",
            "experiments.predict",
            "experiments.export",
            "experiments.report",
            "experiments.dry_run",
            "experiments.pictures",
            "experiments.report_page",
            "experiments.sweep_plots",
            "experiments.seeds",
            "experiments.subject",
        ],
    ),
    "experiments.papers": (0.36, ["experiments.papers"]),
    "experiments.studies": (0.64, ["experiments.studies"]),
    "experiments.training": (0.5, ["experiments.training"]),
    "cli, config, streams": (
        0.3,
        [
            *("experiments", "experiments.cli", "experiments.config"),
            *("experiments.streams", "rn_jax.commands"),
        ],
    ),
    "figures, markdown": (0.1, ["experiments.figures", "experiments.markdown"]),
    "configs": (0.3, ["configs"]),
    "rn_jax, interop, weights": (
        0.5,
        ["rn_jax", "rn_jax.interop", "rn_jax.weights", "rn_jax.weight_files"],
    ),
    "rn_jax.analysis": (0.7, ["rn_jax.analysis"]),
    "train, optim, metrics": (0.3, ["rn_jax.train", "rn_jax.optim", "rn_jax.metrics"]),
    "rn_jax.models": (0.58, ["rn_jax.models"]),
    "rn_jax.data": (0.1, ["rn_jax.data"]),
    "stochastic_depth": (0.45, ["rn_jax.stochastic_depth"]),
    "checkpoint": (0.76, ["rn_jax.checkpoint"]),
    "errors, filesystem, parallel": (
        0.45,
        [
            *("rn_jax.errors", "rn_jax.filesystem", "rn_jax.parallel"),
            *("rn_jax.startup", "rn_jax.leaving"),
        ],
    ),
}


def modules() -> dict[str, Path]:
    """Return the files of rn_jax, experiments and configs by the names of modules."""
    found = {}
    for package in ("rn_jax", "experiments", "configs"):
        for path in sorted(ROOT.glob(f"{package}/**/*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    """Return the room of a module: the one that names it, or else its package.

    Raises:
        KeyError: no room names it.
    """
    rooms = {name: title for title, (_, names) in ROOMS.items() for name in names}
    package = ".".join(module.split(".")[:2])
    if module.startswith("configs"):
        package = "configs"
    return rooms[package]


def imports() -> dict[str, set[str]]:
    """Return for each room the rooms that its modules import, itself left out."""
    known = modules()
    found: dict[str, set[str]] = {title: set() for title in ROOMS}
    for module, path in known.items():
        here = room(module)
        for name in _imported(ast.parse(path.read_bytes())):
            if name not in known:  # a name in a module, or another project's module
                name = name.rpartition(".")[0]
            if name in known and room(name) != here:
                found[here].add(room(name))
    return found


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def levels(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Return the length of the longest chain of imports that leads to each room.

    Raises:
        RecursionError: the imports have a circle.
    """

    def level(title):
        above = [level(other) for other in arrows if title in arrows[other]]
        return 1 + max(above, default=-1)

    return {title: level(title) for title in arrows}


def direct(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows without those that a chain of other arrows implies."""

    def reached(title):
        return set().union(*({o} | reached(o) for o in arrows[title]))

    return {
        title: others - set().union(*(reached(other) for other in others))
        for title, others in arrows.items()
    }


def draw() -> Figure:
    """Draw a box for each room, above all that it imports, and the direct arrows."""
    arrows = direct(imports())
    level = levels(arrows)
    figure = Figure(figsize=(10, 0.95 * (1 + max(level.values()))), layout="tight")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(max(level.values()) + 0.4, -0.4))
    style = {
        "boxstyle": "round,pad=0.5",
        "facecolor": "#eaf1f8",
        "edgecolor": "#4c78a8",
    }
    boxes = {
        title: axes.text(x, level[title], title, ha="center", va="center", bbox=style)
        for title, (x, _) in ROOMS.items()
    }
    figure.draw_without_rendering()  # the boxes get their sizes, at which arrows end
    for title, others in arrows.items():
        for other in others:
            patches = [boxes[end].get_bbox_patch() for end in (title, other)]
            axes.annotate(
                "",
                boxes[other].get_position(),
                boxes[title].get_position(),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "#777777",
                    "patchA": patches[0],
                    "patchB": patches[1],
                    "shrinkA": 0,
                    "shrinkB": 2,
                },
            )
    return figure


def facts() -> str:
    """Return all arrows as JSON, which the picture's file holds for a test."""
    return json.dumps({title: sorted(others) for title, others in imports().items()})


def drawn_facts() -> str:
    """Return the arrows that the picture's file was drawn from."""
    with Image.open(PICTURE) as image:
        return image.text["Description"]


if __name__ == "__main__":
    draw().savefig(PICTURE, dpi=110, metadata={"Description": facts()})
    print(PICTURE)
