# SPDX-License-Identifier: Apache-2.0
"""Lengths of the paths through the blocks (Veit et al. 2016, section 4.3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, no_paths
from rn_jax.analysis import paths


def measure(lab: Lab) -> Result:
    """Compute the distribution of path lengths, and of open blocks in training.

    "paths" counts all 2^L. With stochastic depth, "open_blocks" is the distribution of
    the number of open blocks in training, and "paths_in_training" that of the lengths
    of paths through them.
    """
    found = {"paths": np.full(lab.num_blocks, 0.5)}
    settings, survival = lab.model.stochastic_depth, lab.survival
    if settings is not None and settings.num_open is not None:
        is_open = np.arange(lab.num_blocks) < settings.num_open
        found |= {"open_blocks": 1.0 * is_open, "paths_in_training": 0.5 * is_open}
    elif survival is not None:
        found |= {"open_blocks": survival, "paths_in_training": survival / 2}
    return {
        "measured_on": "computed from the number of blocks",
        **{
            name: distribution(lab, paths.length_distribution(p))
            for name, p in found.items()
        },
    }


def distribution(lab: Lab, weights: np.ndarray) -> dict[str, Any]:
    """Summarise a distribution over lengths, f[L + 1], in values for JSON.

    The `bounds` of the lab are the ranges whose shares are computed.
    """
    lengths = np.arange(len(weights))
    return {
        "weights": weights.tolist(),
        "mean": float(lengths @ weights / weights.sum()),
        "interval_95": list(paths.shortest_interval(weights)),
        "shares": [
            {"from": low, "to": high, "share": paths.share(weights, low, high)}
            for low, high in lab.bounds
        ],
    }


def draw(results: Results) -> figures.Figure:
    """Draw the distributions of path lengths, and of open blocks in training."""
    figure, [axes] = figures.panels()
    names = {
        "paths": "all paths",
        "open_blocks": "open blocks in training",
        "paths_in_training": "paths in training",
    }
    lines = {
        f"{label}: {description}": result[name]
        for label, result in results.items()
        for name, description in names.items()
        if name in result
    }
    for label, found, style in figures.styled(lines):
        low, high = found["interval_95"]
        shown = f"{label} (95 %: {low} to {high})"
        axes.plot(found["weights"], **style, label=shown)
    figures.finish(axes, xlabel="length (blocks)", ylabel="share", ylim=(0, None))
    return figure


def in_words(found: Mapping[str, Any]) -> str:
    """Return a distribution's mean, interval and shares as text."""
    low, high = found["interval_95"]
    shares = "".join(
        f"; {s['from']} to {s['to']}: {100 * s['share']:.3g} %" for s in found["shares"]
    )
    return f"mean {found['mean']:.1f}, 95 % between {low} and {high}{shares}"


def describe(result: Result) -> str:
    """Describe the lengths of the paths."""
    text = f"All 2^{result['num_blocks']} paths: {in_words(result['paths'])}."
    if "open_blocks" in result:
        text += (
            f" Open blocks in training: {in_words(result['open_blocks'])}. "
            f"Paths through them: {in_words(result['paths_in_training'])}."
        )
    return text + (
        " These distributions are exact: they depend on the number of blocks and the "
        "survival probabilities, not on the weights."
    )


STUDY = Study(
    "Lengths of paths",
    "Share of the 2^L paths by length (Veit et al. 2016, 4.3).",
    *(measure, draw, describe),
    order=4,
    missing=no_paths,
    uses=("bounds",),
)
