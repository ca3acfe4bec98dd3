# SPDX-License-Identifier: Apache-2.0
"""Deleting k random blocks together (Veit et al. 2016, figure 5a)."""

from typing import Any

import numpy as np
from scipy import stats

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, no_gates
from experiments.studies.words import too_near_chance
from rn_jax.analysis import lesion, paths

# Largest number of blocks that are deleted together.
MOST_DELETED = 20

# The marker of a draw outside the whiskers of its box.
_OUTLIER: dict[str, Any] = {
    "marker": "o",
    "linestyle": "",
    "markerfacecolor": "none",
    "markersize": 2.5,
    "markeredgewidth": 0.6,
}


def measure(lab: Lab) -> Result:
    """Measure the test error in percent after deleting k random blocks, by draw."""
    rng = lab.rng("delete_many")
    deletable = sum(block.skippable for block in lab.blocks)
    deleted = list(range(1, min(MOST_DELETED, deletable) + 1))
    errors = [
        [
            lab.error(lesion.without(lab.gates, lesion.draw_blocks(rng, lab.blocks, k)))
            for _ in range(lab.draws)
        ]
        for k in lab.each(deleted, "delete_many")
    ]
    return {
        "measured_on": lab.test_images,
        "deletable": deletable,
        "deleted": deleted,
        "error_percent": errors,
    }


def draw(results: Results) -> figures.Figure:
    """Draw boxes of the error, and the share of paths left, by deleted blocks."""
    figure, [axes] = figures.panels()
    width = 0.7 / len(results)
    for i, (label, result, style) in enumerate(figures.styled(results)):
        shift = (i - (len(results) - 1) / 2) * width
        place = np.array([0, *result["deleted"]]) + shift  # 0: the whole network
        boxes = [[result["baseline_error_percent"]], *result["error_percent"]]
        parts = ("boxprops", "whiskerprops", "capprops", "medianprops")
        looks: dict[str, Any] = {part: {"color": style["color"]} for part in parts}
        axes.boxplot(
            boxes,
            positions=place,
            widths=width * 0.8,
            manage_ticks=False,
            flierprops={**_OUTLIER, "markeredgecolor": style["color"]},
            **looks,
        )
        medians = [np.median(box) for box in boxes]
        axes.plot(place, medians, **style, linewidth=0.8, label=f"{label}: median")
    axes.plot([], [], **_OUTLIER, markeredgecolor="black", label="outlier of the draws")
    if several := [r for r in results.values() if r["has_shortcuts"]]:
        deleted = np.arange(1 + max(r["deleted"][-1] for r in several))
        left = [100 * paths.surviving_share(d) for d in deleted]
        beside = axes.twinx()
        beside.plot(deleted, left, color="0.6", linewidth=1, label="paths left")
        beside.set(ylabel="paths left, $2^{-k}$ (%)", ylim=(0, None))
    figures.finish(axes, xlabel="blocks deleted together, $k$", ylim=(0, None))
    axes.set_ylabel("test error (%)")
    axes.xaxis.set_major_locator(figures.whole_numbers())  # boxes stand beside it
    return figure


def describe(result: Result) -> str:
    """Describe the rise of the error, and compare its smoothness with the paper."""
    medians = [float(np.median(e)) for e in result["error_percent"]]
    k = result["deleted"]
    at = sorted({1, k[len(k) // 2], k[-1]} & set(k))
    shown = ", ".join(f"{medians[k.index(n)]:.2f} % with {n}" for n in at)
    text = (
        f"The median test error over {result['draws']} draws is "
        f"{result['baseline_error_percent']:.2f} % with none of {result['deletable']} "
        f"blocks deleted, {shown}. {_paths_left(result, at)}"
    )
    if len(k) < 3 or np.ptp(medians) == 0:
        return text
    rho, jump = smoothness(result)
    smooth = "It rises less smoothly than in the paper: a few blocks dominate."
    if is_smooth(rho, jump):
        smooth = "It rises smoothly, as in the paper."
    return (
        f"{text} The rank correlation of k and the median is {rho:.2f}; the largest "
        f"step from one k to the next is {jump:.1f} points. "
        f"{too_near_chance(result) or smooth}"
    )


def is_smooth(rho: float, jump: float) -> bool:
    """Return whether a rise of this `smoothness` is as smooth as in the paper."""
    return rho > 0.9 and jump < 15


def smoothness(result: Result) -> tuple[float, float]:
    """Return how smoothly the error rises with the number of deleted blocks.

    It is the rank correlation of that number and the median error, and the largest step
    of the median in points.
    """
    medians = [float(np.median(errors)) for errors in result["error_percent"]]
    rho = stats.spearmanr(result["deleted"], medians).statistic
    steps = np.diff([result["baseline_error_percent"], *medians])
    return float(rho), float(steps.max())


def _paths_left(result, deleted):
    if not result["has_shortcuts"]:
        return "The network has a single path, which each deletion cuts."
    left = ", ".join(f"{100 * paths.surviving_share(d):.2g} %" for d in deleted)
    return f"Of the 2^{result['num_blocks']} paths {left} are left."


def _five_deleted(result):
    if 5 not in result["deleted"]:
        return ""
    return f"{np.median(result['error_percent'][result['deleted'].index(5)]):.2f}"


STUDY = Study(
    "Deleting several blocks",
    "Test error after deleting k random blocks together (Veit et al. 2016, 4.2).",
    *(measure, draw, describe),
    order=2,
    missing=no_gates,
    uses=("draws", "seed"),
    columns={"5 blocks deleted: error (%)": _five_deleted},
)
