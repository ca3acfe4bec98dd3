# SPDX-License-Identifier: Apache-2.0
"""Standard deviation of every layer's output (He et al. 2015, figure 7)."""

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study
from rn_jax.analysis import responses

# The most test images that are taken, and at a time.
IMAGES, BATCH = 200, 32


def measure(lab: Lab) -> Result:
    """Measure the standard deviations over the first test images."""
    response_moments = responses.make_response_moments(
        model=lab.model, preprocess=lab.subject.preprocess
    )
    devices, images = len(lab.subject.devices), lab.subject.test.images[:IMAGES]
    size = devices * max(1, min(BATCH, len(images)) // devices)
    starts = range(0, len(images) - size + 1, size)
    found = responses.standard_deviations(
        response_moments(
            lab.variables, lab.gates, lab.split(images[start : start + size])
        )
        for start in lab.each(starts, "layer_responses")
    )
    return {
        "measured_on": f"{size * len(starts):,} of {len(lab.subject.test):,} test "
        "images",
        "layers": list(found),
        "standard_deviation": list(found.values()),
    }


def draw(results: Results) -> figures.Figure:
    """Draw the standard deviation by layer, in order and by magnitude."""
    figure, (left, right) = figures.panels(2, 11, 4.2, sharey=True)
    for label, result, style in figures.styled(results):
        deviations = np.array(result["standard_deviation"])
        place = np.arange(1, len(deviations) + 1)
        left.plot(place, deviations, **style, markersize=3, label=label)
        right.plot(place, np.sort(deviations)[::-1], **style, markersize=3)
    left.set(xlabel="layer, in order", ylabel="standard deviation of the output")
    left.set_ylim(0, 1.05 * left.dataLim.ymax)
    right.set(xlabel="layer, by magnitude")
    right.grid(alpha=0.3)
    figures.finish(left)
    return figure


def tell(result: Result) -> str:
    """Say how strongly the layers respond."""
    deviations = np.array(result["standard_deviation"])
    top = int(deviations.argmax())
    return (
        f"Over {len(deviations)} layers the standard deviation is "
        f"{np.median(deviations):.2f} at the median, {deviations.min():.2f} to "
        f"{deviations.max():.2f} ({result['layers'][top]}). The paper finds smaller "
        "responses in residual networks than in plain ones, and in deeper ones."
    )


STUDY = Study(
    "Responses of the layers",
    "Standard deviation of each layer's output, after BatchNorm and before "
    "the activation or the sum; of the convolution where BatchNorm comes first (He et "
    "al. 2015, figure 7).",
    *(measure, draw, tell),
    missing=lambda s: None if s.model.num_blocks else "it has no blocks",
)
