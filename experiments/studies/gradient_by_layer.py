# SPDX-License-Identifier: Apache-2.0
"""Gradient by layer at the start of training and at its end."""

from collections.abc import Mapping

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study
from experiments.studies.subject import UNTRAINED
from rn_jax.analysis import gradients

# Training images of the mini-batch.
BATCH = 128
# The gradient explodes or vanishes towards the input if that of the first layers is
# this many times larger or smaller than that of the last ones.
FAR = 10.0


def training_batch(lab: Lab, study: str) -> dict[str, np.ndarray]:
    """Draw the mini-batch of a study: "image" u8[B, H, W, C] and "label" i32[B]."""
    rng = lab.rng(study)
    examples = lab.subject.train.take(rng.integers(len(lab.subject.train), size=BATCH))
    return {"image": examples.images, "label": examples.labels}


def measure(lab: Lab) -> Result:
    """Measure the norm of the gradient by each layer's weights and outputs.

    "start" is for initial parameters that are drawn from the lab's seed, "end" for the
    network's own.
    """
    gradient = gradients.make_layer_gradients(
        model=lab.model, preprocess=lab.subject.preprocess
    )
    batch = training_batch(lab, "gradient_by_layer")
    initial = lab.initial_variables()
    found = {}
    for name, variables in (("start", initial), ("end", lab.subject.variables)):
        norms = gradient(variables, lab.gates, batch)
        found[name] = {
            kind: {layer: float(norm) for layer, norm in layers.items()}
            for kind, layers in norms.items()
        }
    return {"measured_on": f"{BATCH} training images", **found}


def draw(results: Results) -> figures.Figure:
    """Draw the norms by layer, from the image to the logits; dotted: at the start."""
    figure, panels = figures.panels(2, aspect=0.8)
    for axes, kind in zip(panels, ("weights", "outputs"), strict=True):
        for label, result, style in figures.styled(results):
            for name, line in (("start", ":"), ("end", "-")):
                if name == "end" and not _trained(result):
                    continue
                norms = np.array(list(result[name][kind].values()))
                place = figures.along(len(norms))
                look = {"color": style["color"], "linestyle": line}
                positive = np.where(norms > 0, norms, np.nan)
                axes.plot(place, positive, **look, label=f"{label}, {name}")
        axis = {"xlabel": figures.along_label("layer", "i"), "yscale": "log"}
        figures.finish(axes, ylabel=f"norm of the gradient by {kind}", **axis)
    return figure


def _trained(result):
    return result["source"] != UNTRAINED


def ratio(norms: Mapping[str, Mapping[str, float]]) -> float:
    """Return the gradient by the outputs of the first tenth of layers over the last's.

    Both are medians in the logarithm. Outputs show what is propagated back; small
    weights would make the gradients by all weights equally small. Without them the
    gradients by weights are used.
    """
    by_layer = norms["outputs"] or norms["weights"]
    with np.errstate(divide="ignore"):  # log 0
        values = np.log(list(by_layer.values()))
    tenth = max(1, len(values) // 10)
    return float(np.exp(np.median(values[:tenth]) - np.median(values[-tenth:])))


def describe(result: Result) -> str:
    """Describe how the gradient changes from the last layers to the first."""
    parts = []
    for name, words in (("start", "At the start"), ("end", "At the end")):
        if name == "end" and not _trained(result):
            continue
        norms = result[name]
        weights = list(norms["weights"].values())
        if not any(weights):
            parts.append(f"{words} no gradient reaches any layer.")
            continue
        found = ratio(norms)
        change = "about as large as in the last ones"
        if found > FAR:
            change = f"{found:.2g} times that of the last ones: it explodes"
        elif found < 1 / FAR:
            change = f"{found:.2g} times that of the last ones: it vanishes"
        parts.append(
            f"{words} the gradient by the outputs of the first layers is {change}. By "
            f"weights, it is {weights[0]:.2g} in the first layer and {weights[-1]:.2g} "
            "in the last."
        )
    return " ".join(parts) + (
        " That gradients vanish in deep plain networks is the usual explanation of "
        "their failure; He et al. 2015 hold that BatchNorm prevents it."
    )


STUDY = Study(
    "Gradient by layer",
    "Norm of the loss's gradient by each layer's weights, and by the outputs of its "
    "convolutions, for initial parameters and for those of the network, with the "
    "statistics of the mini-batch (He et al. 2015, sections 1 and 4.1).",
    *(measure, draw, describe),
    order=15,
    uses=("seed",),
    columns={
        "gradient, first layers over last, at the start": lambda r: (
            f"{ratio(r['start']):.2g}"
        )
    },
)
