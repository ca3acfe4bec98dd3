# SPDX-License-Identifier: Apache-2.0
"""Mean absolute weights between the layers of a DenseNet (Huang et al. 2017)."""

from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, Subject
from rn_jax.analysis import reuse
from rn_jax.models.densenet import DenseNet


def missing(subject: Subject) -> str | None:
    """Return why no layer reads the maps of all earlier ones, or None."""
    dense = isinstance(subject.model, DenseNet)
    return None if dense else "only layers of a DenseNet read the maps of all earlier"


def measure(lab: Lab) -> Result:
    """Compute the mean absolute weight from each layer to each later one, by block.

    `weights[s][l - 1]` is that of source s (0: the block's input) in layer l, or in the
    transition or the classifier, which is last; None where s >= l.
    """
    model = lab.model
    assert isinstance(model, DenseNet), "`missing` excludes other networks"
    found = reuse.mean_absolute_weights(lab.subject.variables["params"], model)
    return {
        "measured_on": "computed from the weights",
        "blocks": [
            [[None if np.isnan(w) else float(w) for w in row] for row in weights]
            for weights in found.values()
        ],
    }


def _arrays(result):
    """Return the blocks' weights f[s, l], NaN where s >= l."""
    return [np.array(block, float) for block in result["blocks"]]


def draw(results: Results) -> figures.Figure:
    """Draw a heat map per dense block, with sources down and readers across.

    As in the paper's figure, a frame marks the column of the transition, or of the
    classifier. Weights are relative to the largest of their block.
    """
    blocks = [
        (weights, f"{label}: block {place}")
        for label, result in results.items()
        for place, weights in enumerate(_arrays(result), start=1)
    ]
    figure, panels = figures.panels(len(blocks), aspect=1)
    for axes, (weights, title) in zip(panels, blocks, strict=True):
        last = len(weights)
        image = axes.imshow(
            weights / np.nanmax(weights),
            cmap=figures.COLOUR_MAP,
            vmin=0,
            vmax=1,
            interpolation="none",
            extent=(0.5, last + 0.5, last - 0.5, -0.5),
        )
        frame: dict[str, Any] = {"fill": False, "edgecolor": figures.COLOURS[1]}
        frame["label"] = "transition, or classifier"
        axes.add_patch(Rectangle((last - 0.5, -0.5), 1, last, **frame))
        axes.set(title=title, xlabel="reading layer $l$", ylabel="source layer $s$")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(figures.whole_numbers())
    bar = figure.colorbar(image, ax=panels, shrink=0.6)
    bar.set_label("mean absolute weight")
    return figure


def describe(result: Result) -> str:
    """Describe what each layer reads, following the paper's four observations."""
    ends = [_columns(weights)[-1] for weights in _arrays(result)]
    evenness = [_evenness(end) for end in ends]
    half = len(ends[-1]) // 2
    late = float(ends[-1][half:].mean() / ends[-1][:half].mean())
    text = ""
    if (found := spread(result)) is not None:
        text = (
            "The evenness of a layer's weights over its sources, by entropy, is "
            f"{100 * found:.0f} % (0 %: only one source has weight; 100 %: all alike). "
        )
    shown = ", ".join(f"{100 * e:.0f} %" for e in evenness)
    inputs = ", ".join(f"{f:.2f}" for f in weights_of_inputs(result))
    return (
        f"{text}For the transitions and the classifier it is {shown}. Layers weigh the "
        f"input of their block {inputs} times as much as its layers' maps (one number "
        f"per block). The classifier weighs the later half of its sources {late:.2f} "
        "times as much as the earlier. In the paper layers and transitions use all "
        "earlier layers, the second and third block use the transition's output least, "
        "and the classifier leans to the last maps."
    )


def spread(result: Result) -> float | None:
    """Return how evenly a layer spreads its weights over its sources, by entropy.

    It is the mean over layers with several sources, 0 where only one has weight and 1
    where all weights are alike; None if there are no such layers.
    """
    found = [
        _evenness(column)
        for weights in _arrays(result)
        for column in _columns(weights)[1:-1]
    ]
    return float(np.mean(found)) if found else None


def weights_of_inputs(result: Result) -> list[float]:
    """Return how layers of each block weigh its input, relative to its layers' maps."""
    return [_first_row_share(weights) for weights in _arrays(result)]


def _evenness(column):
    return float((np.exp(_entropy(column)) - 1) / (len(column) - 1))


def _columns(weights):
    """Return the weights of each reader's sources, f[l] for l = 1, ..., n + 1."""
    return [weights[: place + 1, place] for place in range(len(weights))]


def _entropy(column):
    """Return the entropy in nats of the shares of a reader's sources."""
    shares = column / column.sum()
    return -np.sum(shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares)))


def _first_row_share(weights):
    """Return the mean ratio of layers' weights of the input to those of layers."""
    columns = _columns(weights)[1:-1] or _columns(weights)[1:]
    return float(np.mean([c[0] / c[1:].mean() for c in columns]))


STUDY = Study(
    "Feature reuse",
    "Mean absolute weight with which each layer of a dense block, and the transition "
    "or the classifier after it (framed), reads the maps of each earlier layer (0: the "
    "input of the block), relative to the largest of the block (Huang et al. 2017, "
    "figure 5).",
    *(measure, draw, describe),
    order=11,
    missing=missing,
)
