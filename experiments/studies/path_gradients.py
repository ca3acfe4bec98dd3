# SPDX-License-Identifier: Apache-2.0
"""Gradient at the input along paths by their length (Veit et al. 2016, figure 6)."""

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, no_paths
from experiments.studies.path_lengths import distribution
from experiments.studies.words import activated_sum
from rn_jax.analysis import paths

# Training images per draw, each with its own path.
BATCH = 100
# Where most of the gradient of 54 blocks comes from: by both versions of the paper,
# whose abstracts have 10 to 34 layers; and by an overview of it (V. Fung, "An Overview
# of ResNet and its Variants", 2017: a secondary source).
TEXTS = {"the paper": (5, 17), "an overview of it": (9, 18)}
# R^2 from which the logarithm of the gradient counts as linear in the length.
LINEAR = 0.9
# The gradient's mean path length counts as short below this share of that of all paths.
SHORTER = 0.8


def measure(lab: Lab) -> Result:
    """Measure the gradient along a random path of each length, for random images.

    Every length uses the same training images. A few misclassified images have nearly
    all of the gradient, so "relative" divides each norm by that of the image's whole
    gradient, which weights images equally; the paper's norms are also returned.
    """
    rng, draws, depth = lab.rng("path_gradients"), lab.draws, lab.num_blocks
    size = lab.whole(BATCH)
    gradient = paths.make_path_gradient(
        model=lab.model, preprocess=lab.subject.preprocess
    )

    def norms_of(batch, taken=None):
        taken = None if taken is None else lab.split(taken, axis=1)
        return np.asarray(gradient(lab.variables, lab.gates, batch, taken), np.float64)

    examples = [
        lab.subject.train.take(indices)
        for indices in rng.integers(len(lab.subject.train), size=(draws, size))
    ]
    batches = [lab.split({"image": e.images, "label": e.labels}) for e in examples]
    whole = np.array([norms_of(batch) for batch in batches])
    norms = np.array(
        [
            [
                norms_of(batch, paths.draw_paths(rng, depth, length, size))
                for batch in batches
            ]
            for length in lab.each(range(depth + 1), "path_gradients")
        ]
    )
    known = whole > 0  # the gradient of a confidently classified image underflows
    norms, whole = norms[:, known], whole[known]
    relative = (norms / whole).mean(axis=1)
    all_paths = paths.length_distribution(np.full(depth, 0.5))
    return {
        "measured_on": f"{len(whole):,} training images, each with a path per length",
        "batch_norm": "moving averages, as in evaluation",
        "whole_norm_mean": float(whole.mean()),
        "norm_mean": norms.mean(axis=1).tolist(),
        "norm_quartiles": np.quantile(norms, (0.25, 0.5, 0.75), axis=1).T.tolist(),
        "relative_mean": relative.tolist(),
        "paths": distribution(lab, all_paths),
        "contribution": distribution(lab, all_paths * relative),
        "contribution_of_norms": distribution(lab, all_paths * norms.mean(axis=1)),
    }


def draw(results: Results) -> figures.Figure:
    """Draw the share of paths, the gradient of one path, and their product."""
    figure, (number, strength, product) = figures.panels(3, aspect=1)
    for label, result, style in figures.styled(results):
        look = {**style, "label": label}
        number.plot(result["paths"]["weights"], **look)
        strength.plot(result["relative_mean"], **look)
        weights = np.array(result["contribution"]["weights"])
        product.plot(weights / weights.sum(), **look)
        low, high = result["contribution"]["interval_95"]
        shade = {"color": style["color"], "alpha": 0.12}
        product.axvspan(
            low - 0.5, high + 0.5, **shade, label=f"{label}, 95 %: {low} to {high}"
        )
    axis = {"xlabel": "path length (blocks)"}
    figures.finish(number, title="number of paths", ylabel="share of all paths", **axis)
    relative = {"ylabel": "norm over that of the whole", "yscale": "log"}
    figures.finish(strength, title="gradient along one path", **relative, **axis)
    share = {"ylabel": "share of the gradient", **axis}
    figures.finish(product, title="product of both", **share)
    return figure


def describe(result: Result) -> str:
    """Describe the lengths that carry the gradient, and compare with the paper."""
    slope = -np.log(shrinkage(result))
    contribution, everything = result["contribution"], result["paths"]
    low, high = contribution["interval_95"]
    held = float(np.sum(everything["weights"][low : high + 1]))
    change = f"{'shrinks' if slope < 0 else 'grows'} by a factor of "
    change += f"{np.exp(abs(slope)):.2f}"
    ratio = contribution["mean"] / everything["mean"]
    if ratio < SHORTER:
        verdict = "As in the paper, these paths are shorter than most."
    elif ratio < 1:
        verdict = (
            "These paths are shorter than most, but not by as much as in the paper's "
            "deeper network."
        )
    else:
        verdict = "In the paper these paths are shorter than most; here they are not."
    plain = result["contribution_of_norms"]["interval_95"]
    return (
        f"The gradient along a path {change} per block (fitted over all lengths, with "
        f"R² = {fit_quality(result):.3f}). "
        f"Multiplied by the number of paths, 95 % of the gradient passes through paths "
        f"of length {low} to {high}, mean {contribution['mean']:.1f}. These are "
        f"{100 * held:.3g} % of all paths, whose mean length is "
        f"{everything['mean']:.1f}. {verdict} {_texts(result)} (Norms that are not "
        "divided by that of the image, and therefore depend on the hardest images, "
        f"give {plain[0]} to {plain[1]}.){activated_sum(result)}"
    )


def shrinkage(result: Result) -> float:
    """Return by how much one more block divides the gradient along a path.

    It is fitted over all lengths, in the logarithm; see `fit_quality`.
    """
    lengths, logarithms = _logarithms(result)
    return float(np.exp(-np.polyfit(lengths, logarithms, 1)[0]))


def fit_quality(result: Result) -> float:
    """Return R^2 of the fit of `shrinkage`: 1 if the gradient is exponential."""
    lengths, logarithms = _logarithms(result)
    rest = logarithms - np.polyval(np.polyfit(lengths, logarithms, 1), lengths)
    total = np.square(logarithms - logarithms.mean()).sum()
    return float(1 - np.square(rest).sum() / total) if total else 1.0


def _logarithms(result):
    means = np.array(result["relative_mean"])
    known = means > 0
    return np.arange(len(means))[known], np.log(means[known])


def _texts(result):
    """Return the shares of the ranges that the texts give, or those ranges alone."""
    gradient = np.array(result["contribution"]["weights"])
    everything = np.array(result["paths"]["weights"])
    if len(gradient) != 55:
        ranges = " and ".join(f"{a} to {b} ({t})" for t, (a, b) in TEXTS.items())
        return f"For 54 blocks the texts name lengths {ranges}."
    shares = " and ".join(
        f"{100 * paths.share(gradient, low, high):.1f} % from lengths {low} to {high}, "
        f"the range of {text} ({100 * paths.share(everything, low, high):.2g} % of all "
        "paths)"
        for text, (low, high) in TEXTS.items()
    )
    return f"It gets {shares}."


STUDY = Study(
    "Gradient by path length",
    "Gradient that reaches the image along single paths, relative to the image's whole "
    "gradient, for training images without augmentation and with BatchNorm's moving "
    "averages; its product with the number of paths shows the lengths that carry the "
    "gradient (Veit et al. 2016, 4.3).",
    *(measure, draw, describe),
    order=5,
    missing=no_paths,
    uses=("draws", "seed", "bounds"),
    columns={
        "mean path length of the gradient": lambda r: f"{r['contribution']['mean']:.1f}"
    },
)
