# SPDX-License-Identifier: Apache-2.0
"""Figures of one run: its learning curves, and how often each block was open."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.figures import finish, panels

_LINE_STYLES = {"train": "--", "val": ":", "test": "-"}


def learning_curves(epochs: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """Draw loss and error by epoch, and where the learning rate changes.

    `epochs` are the lines of metrics.jsonl of kind "epoch".
    """
    figure, both = panels(2, 10, 4)
    figure.suptitle(title)
    at = [line["epoch"] for line in epochs]
    quantities = {"loss": "loss (nats)", "error_percent": "error (%)"}
    for axes, (quantity, label) in zip(both, quantities.items(), strict=True):
        for part, style in _LINE_STYLES.items():
            name = f"{part}_{quantity}"
            if name in epochs[0]:
                values = [line[name] for line in epochs]
                marker = "o" if len(at) == 1 else None
                axes.plot(at, values, style, color="black", marker=marker, label=part)
        finish(axes, xlabel="epoch", ylabel=label, ylim=(0, None))
        for before, after in itertools.pairwise(epochs):
            if after["learning_rate"] != before["learning_rate"]:
                axes.axvline(before["epoch"], color="grey", linewidth=0.8)
                axes.annotate(
                    f" rate {after['learning_rate']:.3g}",
                    (before["epoch"], 0.98),
                    xycoords=("data", "axes fraction"),
                    va="top",
                    fontsize="small",
                    color="grey",
                )
    return figure


def survival(
    probabilities: jax.Array | np.ndarray, opened: np.ndarray, *, title: str
) -> Figure:
    """Draw the survival probabilities p_l, and how often each block was open.

    Both are f[L]; `opened` are shares of the training steps.
    """
    figure, [axes] = panels(1, 7, 4)
    blocks = np.arange(1, len(opened) + 1)
    axes.bar(blocks, opened, color="lightgrey", edgecolor="grey", label="measured")
    axes.plot(blocks, probabilities, "k-", label="survival probability $p_l$")
    axes.set(
        title=title, xlabel="block $l$", ylabel="share of steps open", ylim=(0, 1.05)
    )
    axes.legend(loc="lower left")
    return figure
