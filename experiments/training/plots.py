# SPDX-License-Identifier: Apache-2.0
"""Figures of one run: its learning curves, and how often each block was open."""

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from configs.default import Config
from experiments import figures
from experiments.config import as_json
from rn_jax.filesystem import make_folder, read_json, replace_file

# Learning curves with more changes of the learning rate than this do not mark them.
_MOST_CHANGES = 6


def save(
    folder: epath.Path,
    config: Config,
    epochs: Sequence[Mapping[str, Any]],
    gates: Mapping[str, Any] | None = None,
) -> None:
    """Write the figures of a run into a folder.

    Args:
        folder: folder of the figures.
        config: config of the run.
        epochs: lines of metrics.jsonl of kind "epoch".
        gates: "survival_probs" and "open_share", f[L] each, and "steps", which are
            also written to survival.json; None: those of survival.json, if it exists.

    Raises:
        InputError: a file cannot be written.
    """
    name = f"{config.model} on {config.dataset}"
    settings = _settings(config)
    figures.save(
        functools.partial(learning_curves, epochs),
        folder / "learning_curves",
        title=name,
        caption=f"Loss and error by epoch of {name}. {settings}",
    )
    kept = folder / "survival.json"
    if gates is not None:
        make_folder(folder)
        replace_file(kept, json.dumps(gates) + "\n")
    elif kept.exists():
        gates = read_json(kept)
    if gates is not None:
        probabilities, opened = gates["survival_probs"], gates["open_share"]
        figures.save(
            functools.partial(survival, probabilities, opened),
            folder / "survival",
            title=name,
            caption="Survival probability of each block, and the share of "
            f"{gates['steps']:,} training steps in which it was open, of {name}. "
            f"{settings}",
        )


def _settings(config):
    """Return the fields of a config that differ from the defaults, in a sentence."""
    defaults = as_json(Config())
    fields = as_json(config).items()
    differ = [f"{n}={v}" for n, v in fields if v != defaults[n] or n == "seed"]
    return f"Settings other than the defaults: {', '.join(differ)}."


def learning_curves(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss and error by epoch, and where the learning rate changes.

    `epochs` are the lines of metrics.jsonl of kind "epoch".
    """
    figure, (loss, error) = figures.panels(2, aspect=0.75)
    at = [line["epoch"] for line in epochs]
    changes = [
        (before["epoch"], after["learning_rate"])
        for before, after in itertools.pairwise(epochs)
        if after["learning_rate"] != before["learning_rate"]
    ]
    for axes, quantity in ((loss, "loss"), (error, "error_percent")):
        for part, dashes in figures.PARTS.items():
            name = f"{part}_{quantity}"
            if name in epochs[0]:
                values = [line[name] for line in epochs]
                look = {**figures.look(0), "linestyle": dashes}
                if len(at) > 1:
                    look["marker"] = None
                axes.plot(at, values, **look, label=part)
    figures.finish(loss, xlabel="epoch", ylabel="loss (nats)")
    figures.scale_loss(loss)
    figures.finish(error, xlabel="epoch", ylabel="error (%)", ylim=(0, None))
    if len(changes) <= _MOST_CHANGES:
        for axes, (epoch, rate) in itertools.product((loss, error), changes):
            axes.axvline(epoch, **figures.MARK, label="change of the learning rate")
            axes.annotate(
                f" {rate:.3g}",
                (epoch, 0.98),
                xycoords=("data", "axes fraction"),
                va="top",
                fontsize="small",
                color="0.4",
            )
    return figure


def survival(probabilities: Sequence[float], opened: Sequence[float]) -> Figure:
    """Draw the survival probabilities p_l, and how often each block was open.

    Both are f[L]; `opened` are shares of the training steps.
    """
    figure, [axes] = figures.panels(height=2.6)
    blocks = figures.along(len(opened))
    width = 0.8 * blocks[0]  # the distance of two blocks
    colour = figures.COLOURS[0]
    share = "share of steps open"
    axes.bar(blocks, opened, width, color=colour, alpha=0.4, label=share)
    rule = "survival probability $p_l$"
    axes.plot(blocks, np.asarray(probabilities), color=colour, label=rule)
    label = figures.along_label()
    figures.finish(axes, xlabel=label, ylabel="probability, share", ylim=(0, 1.05))
    return figure
