# SPDX-License-Identifier: Apache-2.0
"""Magnitude of the first convolution's gradient (Huang et al. 2016, figure 7)."""

import itertools

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, Subject


def missing(subject: Subject) -> str | None:
    """Return why the magnitude is unknown, or None."""
    logged = subject.run is not None and "first_gradient" in subject.run.epochs[0]
    return None if logged else "there is no log of the gradient"


def measure(lab: Lab) -> Result:
    """Collect the mean magnitude in nats by epoch, as logged in training."""
    lines = lab.run.epochs
    return {
        "measured_on": "all training images, in training",
        "epochs": [line["epoch"] for line in lines],
        "learning_rate": [line["learning_rate"] for line in lines],
        "first_gradient": [line["first_gradient"] for line in lines],
    }


def draw(results: Results) -> figures.Figure:
    """Draw the magnitude by epoch, with lines at the drops of the learning rate."""
    figure, [axes] = figures.panels()
    for label, result, style in figures.styled(results):
        gradient = result["first_gradient"]
        axes.plot(result["epochs"], gradient, **style, label=label)
        rates = itertools.pairwise(result["learning_rate"])
        for epoch, (before, after) in zip(result["epochs"], rates, strict=False):
            if after < before:
                axes.axvline(epoch + 0.5, **figures.MARK)
    axes.plot([], [], **figures.MARK, label="learning rate drops")
    figures.finish(axes, xlabel="epoch", ylabel="mean |gradient| (nats)", yscale="log")
    return figure


def describe(result: Result) -> str:
    """Describe the magnitude at the start and the end of training."""
    gradient = np.array(result["first_gradient"])
    quarter = max(1, len(gradient) // 4)
    return (
        f"The mean magnitude over epochs is {gradient.mean():.2e} nats, "
        f"{gradient[:quarter].mean():.2e} in the first quarter and "
        f"{gradient[-quarter:].mean():.2e} in the last. In the paper it is larger with "
        "stochastic depth than at constant depth, mainly after drops of the rate."
    )


def compare(results: Results) -> str:
    """Describe the ratio of the first network's gradients to those of the others."""
    (first, one), *others = results.items()
    ours = dict(zip(one["epochs"], one["first_gradient"], strict=True))
    rates = dict(zip(one["epochs"], one["learning_rate"], strict=True))
    sentences = []
    for label, other in others:
        theirs = dict(zip(other["epochs"], other["first_gradient"], strict=True))
        ratios = {e: ours[e] / theirs[e] for e in ours if theirs.get(e)}
        late = [r for e, r in ratios.items() if rates[e] < max(rates.values())]
        if ratios:
            after = f", {np.median(late):.2f} after the rate drops" if late else ""
            median = np.median(list(ratios.values()))
            sentences.append(f"{first} to {label}: median {median:.2f}{after}.")
    return f"**Ratio of the gradients by epoch.** {' '.join(sentences)}"


STUDY = Study(
    "Gradient of the first convolution",
    "Mean magnitude of the gradient of the first block's first convolution, "
    "by epoch (Huang et al. 2016, figure 7).",
    *(measure, draw, describe),
    order=7,
    missing=missing,
    compare=compare,
)
