# SPDX-License-Identifier: Apache-2.0
"""Distributions of features that are added, or concatenated (not in the papers).

An overview (V. Fung, "An Overview of ResNet and its Variants", 2017: a secondary
source) explains DenseNet by two claims, which this study measures: adding maps of very
different distributions may impede the flow of information; and concatenating preserves
them all and increases the variance of the outputs. Huang et al. 2017 (section 3) say
only that summation may impede the information flow.
"""

import jax
import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, Subject
from experiments.studies.layer_responses import BATCH, IMAGES
from rn_jax.analysis import combination
from rn_jax.models.densenet import DenseNet
from rn_jax.models.resnet import ResNet


def missing(subject: Subject) -> str | None:
    """Return why nothing is added or concatenated, or None."""
    model = subject.model
    combines = isinstance(model, DenseNet | ResNet) and model.has_shortcuts
    return None if combines else "its blocks neither add nor concatenate features"


def measure(lab: Lab) -> Result:
    """Measure what each block carries, adds and returns over the first test images."""
    combine = combination.make_combination(
        model=lab.model, preprocess=lab.subject.preprocess
    )
    batches, measured_on = lab.first_batches(IMAGES, BATCH)
    found = combination.statistics(
        [
            jax.device_get(combine(lab.variables, lab.gates, lab.split(images)))
            for images in lab.each(batches, "combined_features")
        ]
    )
    names = ["carried", "added", "combined", "distance"]
    names += ["variance_ratio", "concatenated_ratio"]
    return {
        "measured_on": measured_on,
        "combined_by": "concat" if isinstance(lab.model, DenseNet) else "sum",
        "block_names": list(found),
        **{name: [block[name] for block in found.values()] for name in names},
    }


def draw(results: Results) -> figures.Figure:
    """Draw deviations of both parts, their distance, and the ratio of variances."""
    figure, (parts, distance, ratio) = figures.panels(3, aspect=1)
    for label, result, style in figures.styled(results):
        place = figures.along(len(result["added"]))
        how = {"sum": "added", "concat": "concatenated"}[result["combined_by"]]
        hollow = {**style, "markerfacecolor": "white"}
        parts.plot(place, result["carried"], **style, label=f"{label}: carried")
        parts.plot(place, result["added"], **hollow, label=f"{label}: {how}")
        distance.plot(place, result["distance"], **style)
        ratio.plot(place, result["variance_ratio"], **style)
    ratio.axhline(1, **figures.REFERENCE, color="black", label="mean of both variances")
    axis = {"xlabel": figures.along_label()}
    deviation = {"ylabel": "standard deviation", "ylim": (0, None)}
    figures.finish(parts, title="features", **deviation, **axis)
    apart = {"ylabel": "Kolmogorov-Smirnov distance", "ylim": (0, 1)}
    figures.finish(distance, title="carried against new", **apart, **axis)
    relative = {"ylabel": "ratio", "ylim": (0, None)}
    figures.finish(ratio, title="variance over mean of both", **relative, **axis)
    return figure


def describe(result: Result) -> str:
    """Describe the two distributions, and the variance of their combination."""
    relative = np.median(np.array(result["added"]) / np.array(result["carried"]))
    distance = np.array(result["distance"])
    ratio = float(np.median(result["variance_ratio"]))
    apart = float(np.median(result["concatenated_ratio"]))
    summed = result["combined_by"] == "sum"
    text = (
        f"What a block adds has {relative:.2f} times the standard deviation of what it "
        f"carries (median of {len(distance)} blocks), and the Kolmogorov-Smirnov "
        f"distance of the two distributions is {np.median(distance):.2f} in the median "
        f"and {distance.max():.2f} at most. "
    )
    if summed:
        holds = "holds" if apart > ratio else "does not hold"
        return text + (
            f"The variance of their sum is {ratio:.2f} times the mean of both; that of "
            f"their concatenation would be {apart:.2f} times the mean. The claim that "
            f"concatenation increases the variance {holds} here."
        )
    return text + (
        f"Concatenated, they have {ratio:.2f} times the mean of their variances (at "
        "least 1, by the difference of their means; a sum of uncorrelated features has "
        "2 times the mean)."
    )


STUDY = Study(
    "Summed and concatenated features",
    "Standard deviation of what each block carries and adds, the distance between the "
    "two distributions, and the variance of their sum or concatenation.",
    *(measure, draw, describe),
    order=12,
    missing=missing,
)
