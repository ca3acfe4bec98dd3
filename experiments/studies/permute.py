# SPDX-License-Identifier: Apache-2.0
"""Reordering the blocks (Veit et al. 2016, figure 5b)."""

import jax
import numpy as np
from scipy import stats

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, Subject
from experiments.studies.words import too_near_chance
from rn_jax import parallel, unstack
from rn_jax.analysis import lesion

# Numbers of successive swaps.
SWAPS = (1, 2, 4, 6, 8, 12, 16, 20)

# Below this rank correlation of Kendall's tau and the error, it grows with disorder.
GROWS = -0.5


def missing(subject: Subject) -> str | None:
    """Return why no blocks can be swapped, or None."""
    if lesion.interchangeable(subject.model.blocks, unstack(subject.variables)):
        return None
    return "it has no two blocks of the same shape that could be swapped"


def measure(lab: Lab) -> Result:
    """Measure the test error in percent after random swaps, by Kendall's tau."""
    rng, orders = lab.rng("permute"), []
    pairs = lesion.interchangeable(lab.blocks, lab.unstacked)
    for swaps in lab.each(SWAPS, "permute"):
        for _ in range(lab.draws):
            order = lesion.draw_order(rng, lab.num_blocks, pairs, swaps)
            variables = jax.device_get(lesion.reorder(lab.unstacked, lab.model, order))
            variables = parallel.replicate(variables, lab.subject.devices)
            orders.append(
                {
                    "swaps": swaps,
                    "kendall_tau": lesion.kendall_tau(order),
                    "error_percent": lab.error(lab.gates[order], variables),
                }
            )
    return {"measured_on": lab.test_images, "pairs": len(pairs), "orders": orders}


def draw(results: Results) -> figures.Figure:
    """Draw the error by Kendall's tau, from 1, the trained order, on the left."""
    figure, [axes] = figures.panels()
    for label, result, style in figures.styled(results):
        tau = [order["kendall_tau"] for order in result["orders"]]
        error = [order["error_percent"] for order in result["orders"]]
        look = {**style, "linestyle": ""}
        axes.plot(tau, error, **look, alpha=0.7, label=label)
        base = result["baseline_error_percent"]
        axes.axhline(base, color=style["color"], **figures.REFERENCE)
    axes.plot([], [], color="black", **figures.REFERENCE, label="trained order")
    axes.invert_xaxis()
    tau_axis = {"xlabel": r"Kendall's $\tau$ with the trained order"}
    figures.finish(axes, ylabel="test error (%)", ylim=(0, None), **tau_axis)
    return figure


def describe(result: Result) -> str:
    """Describe how the error grows with disorder, and compare with the paper."""
    tau = [order["kendall_tau"] for order in result["orders"]]
    error = [order["error_percent"] for order in result["orders"]]
    by: dict[int, list[float]] = {}
    for order in result["orders"]:
        by.setdefault(order["swaps"], []).append(order["error_percent"])
    swaps = sorted(by)
    shown = ", ".join(
        f"{np.median(by[n]):.2f} % after {n}" for n in (swaps[0], swaps[-1])
    )
    text = (
        f"{result['pairs']} pairs of blocks can be swapped. The median test error is "
        f"{result['baseline_error_percent']:.2f} % in the trained order and {shown} "
        f"random swaps (smallest tau: {min(tau):.2f})."
    )
    if np.ptp(tau) == 0 or np.ptp(error) == 0:
        return text
    rho = correlation(result)
    text = f"{text} The rank correlation of tau and the error is {rho:.2f}"
    if not result["residual"]:
        return f"{text}. The paper reorders only residual networks."
    if near := too_near_chance(result):
        return f"{text}. {near}"
    return text + (
        "; the error grows with the disorder, as in the paper."
        if rho < GROWS
        else ", unlike the smooth rise in the paper."
    )


def correlation(result: Result) -> float:
    """Return the rank correlation of Kendall's tau and the test error."""
    names = ("kendall_tau", "error_percent")
    tau, error = ([order[name] for order in result["orders"]] for name in names)
    return float(stats.spearmanr(tau, error).statistic)


STUDY = Study(
    "Reordering the blocks",
    "Test error after random swaps of equally shaped blocks within a stage, by "
    "Kendall's rank correlation with the trained order (Veit et al. 2016, 4.2).",
    *(measure, draw, describe),
    order=3,
    missing=missing,
    uses=("draws", "seed"),
)
