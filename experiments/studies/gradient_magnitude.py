# SPDX-License-Identifier: Apache-2.0
"""Magnitude of the first convolution's gradient (Huang et al. 2016, figure 7)."""

import itertools

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, Subject


def missing(subject: Subject) -> str | None:
    """Say why the magnitude is not known, if so."""
    logged = subject.run is not None and "first_gradient" in subject.run["epochs"][0]
    return None if logged else "there is no log of the gradient"


def measure(lab: Lab) -> Result:
    """Collect the mean magnitude by epoch, as it was logged in training."""
    lines = lab.run["epochs"]
    return {
        "measured_on": "all training images, in training",
        "epochs": [line["epoch"] for line in lines],
        "learning_rate": [line["learning_rate"] for line in lines],
        "first_gradient": [line["first_gradient"] for line in lines],
    }


def draw(results: Results) -> figures.Figure:
    """Draw the magnitude by epoch, and where the learning rate drops."""
    figure, [axes] = figures.panels()
    for label, result, style in figures.styled(results):
        gradient = result["first_gradient"]
        axes.plot(result["epochs"], gradient, **style, markersize=3, label=label)
        rates = itertools.pairwise(result["learning_rate"])
        for epoch, (before, after) in zip(result["epochs"], rates, strict=False):
            if after < before:
                axes.axvline(epoch + 0.5, color="0.8", linewidth=0.8, zorder=0)
    axes.plot([], [], color="0.8", linewidth=0.8, label="learning rate drops")
    magnitude = "mean magnitude of the gradient (nats)"
    figures.finish(axes, xlabel="epoch", ylabel=magnitude, yscale="log")
    return figure


def tell(result: Result) -> str:
    """Say how large the gradient is, at first and at last."""
    gradient = np.array(result["first_gradient"])
    quarter = max(1, len(gradient) // 4)
    return (
        f"The mean magnitude over epochs is {gradient.mean():.2e} nats; "
        f"{gradient[:quarter].mean():.2e} in the first quarter and "
        f"{gradient[-quarter:].mean():.2e} in the last. The paper finds it larger with "
        "stochastic depth than at constant depth, most clearly after the rate drops."
    )


def compare(results: Results) -> str:
    """Give the ratio of the first network's gradients to those of each other."""
    (first, one), *others = results.items()
    ours = dict(zip(one["epochs"], one["first_gradient"], strict=True))
    rates = dict(zip(one["epochs"], one["learning_rate"], strict=True))
    told = []
    for label, other in others:
        theirs = dict(zip(other["epochs"], other["first_gradient"], strict=True))
        ratios = {e: ours[e] / theirs[e] for e in ours if theirs.get(e)}
        after = [r for e, r in ratios.items() if rates[e] < max(rates.values())]
        if ratios:
            late = f", {np.median(after):.2f} after the rate drops" if after else ""
            median = np.median(list(ratios.values()))
            told.append(f"{first} over {label}: {median:.2f} at the median{late}.")
    return f"**Ratio of the gradients by epoch.** {' '.join(told)}"


STUDY = Study(
    "Gradient of the first convolution",
    "Mean magnitude of the gradient of the first block's first convolution, "
    "by epoch (Huang et al. 2016, figure 7).",
    *(measure, draw, tell),
    missing=missing,
    compare=compare,
)
