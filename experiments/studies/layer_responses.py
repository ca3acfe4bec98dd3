# SPDX-License-Identifier: Apache-2.0
"""Standard deviation of every layer's output (He et al. 2015, figure 7)."""

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study
from rn_jax.analysis import responses

# Largest number of test images, in all and at a time.
IMAGES, BATCH = 200, 40


def measure(lab: Lab) -> Result:
    """Measure the standard deviation of each layer over the first test images."""
    moments = responses.make_response_moments(
        model=lab.model, preprocess=lab.subject.preprocess
    )
    batches, measured_on = lab.first_batches(IMAGES, BATCH)
    found = responses.standard_deviations(
        moments(lab.variables, lab.gates, lab.split(images))
        for images in lab.each(batches, "layer_responses")
    )
    return {
        "measured_on": measured_on,
        "layers": list(found),
        "standard_deviation": list(found.values()),
    }


def typical(result: Result) -> float:
    """Return the median over layers of the standard deviation."""
    return float(np.median(result["standard_deviation"]))


def draw(results: Results) -> figures.Figure:
    """Draw the standard deviation by layer, in order and by magnitude."""
    figure, (left, right) = figures.panels(2, aspect=0.8, sharey=True)
    for label, result, style in figures.styled(results):
        deviations = np.array(result["standard_deviation"])
        place = figures.along(len(deviations))
        left.plot(place, deviations, **style, label=label)
        right.plot(place, np.sort(deviations)[::-1], **style, label=label)
    axis = {"ylabel": "standard deviation of the output", "ylim": (0, None)}
    in_order = figures.along_label("layer", "i")
    figures.finish(left, title="in order", xlabel=in_order, **axis)
    sorted_by = "rank of the layer"
    if figures.current().relative_depth:
        sorted_by = "relative rank of the layer"
    figures.finish(right, title="by magnitude", xlabel=sorted_by, **axis)
    return figure


def describe(result: Result) -> str:
    """Describe the range of the standard deviations."""
    deviations = np.array(result["standard_deviation"])
    top = int(deviations.argmax())
    return (
        f"The median standard deviation of {len(deviations)} layers is "
        f"{typical(result):.2f}; it ranges from {deviations.min():.2f} to "
        f"{deviations.max():.2f} ({result['layers'][top]}). In the paper responses are "
        "smaller in residual networks than in plain ones, and in deeper networks."
    )


STUDY = Study(
    "Responses of the layers",
    "Standard deviation of each layer's output, after BatchNorm and before "
    "the activation or the sum; of the convolution itself if BatchNorm precedes it. "
    f"It is over all positions of at most {IMAGES} images (He et al. 2015, figure 7).",
    *(measure, draw, describe),
    order=8,
    missing=lambda s: None if s.model.num_blocks else "it has no blocks",
)
