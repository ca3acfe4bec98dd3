# SPDX-License-Identifier: Apache-2.0
"""Draw docs/gates.png: what a gate is, and four uses of ResNet-110's 54 gates.

python -m docs.picture
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rn_jax
from rn_jax.analysis import lesion

PATH = Path(__file__).parent / "gates.png"
STEPS = 60
DELETED = 20
OPEN = 12


def columns() -> dict[str, np.ndarray]:
    """Return gates f[L, S] of ResNet-110 by their use, one column for each step."""
    model = rn_jax.create_model("resnet110")
    settings = rn_jax.StochasticDepth(last_survival=0.5)
    short = rn_jax.StochasticDepth(num_open=OPEN, schedule="uniform")
    size = model.num_blocks
    keys = jax.random.split(jax.random.key(0), STEPS)
    draw = jax.vmap(lambda key: rn_jax.sample_gates(key, settings, size, 1))
    return {
        f"training: drawn\nin each of {STEPS} steps": np.asarray(draw(keys)).T,
        "test:\nprobabilities": np.asarray(rn_jax.eval_gates(settings, size))[:, None],
        f"lesion:\n{DELETED} deleted": lesion.without(np.ones(size), [DELETED - 1])[
            :, None
        ],
        f"short path:\n{OPEN} open": np.asarray(
            rn_jax.sample_gates(jax.random.key(1), short, size, 1)
        )[:, None],
    }


def draw() -> Figure:
    """Draw the picture."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    uses = columns()
    widths = [2.6, 5.2, *[1.3] * (len(uses) - 1)]
    block, *panels = figure.subplots(1, len(widths), width_ratios=widths)
    _block(block)
    for axes, (title, gates) in zip(panels, uses.items(), strict=True):
        size = len(gates)
        image = axes.imshow(
            gates,
            cmap="Greys",
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="none",
            extent=(0.5, gates.shape[1] + 0.5, size + 0.5, 0.5),
        )
        axes.set_title(title, fontsize=10)
        axes.set_xticks([1, STEPS] if gates.shape[1] > 1 else [])
        axes.set_yticks([1, 18, 36, size] if axes is panels[0] else [])
    panels[0].set(xlabel="step", ylabel="block $l$")
    bar = figure.colorbar(image, ax=panels, shrink=0.6, ticks=[0, 0.5, 1])
    bar.set_label("gate$_l$ (0: not computed)")
    return figure


def _block(axes: Axes) -> None:
    """Draw a residual block with its gate, from the bottom to the top."""
    axes.set(xlim=(-1.2, 1.7), ylim=(-0.7, 5.6))
    axes.axis("off")
    arrow = {"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0}
    white = {"facecolor": "white"}
    box = {"boxstyle": "round,pad=0.5", **white}
    circle = {"boxstyle": "circle", **white}
    axes.plot([0, 1, 1], [0.5, 0.5, 4.2], color="black", linewidth=1)
    for start, end in (
        *(((0, 0), (0, 1.25)), ((0, 1.95), (0, 2.55))),
        *(((0, 3.25), (0, 3.9)), ((0, 4.5), (0, 5.2)), ((1, 4.2), (0.28, 4.2))),
    ):
        axes.annotate("", end, start, arrowprops=arrow)
    for y, text, shape in (
        (-0.25, "$x$", None),
        (1.6, "$f_l$", box),
        (2.9, r"$\times$ gate$_l$", box),
        (4.2, "$+$", circle),
    ):
        axes.text(0, y, text, ha="center", va="center", bbox=shape)
    axes.text(1.12, 2.3, "shortcut", rotation=90, va="center", fontsize=9)


if __name__ == "__main__":
    draw().savefig(PATH, dpi=120)
    print(PATH)
