# SPDX-License-Identifier: Apache-2.0
"""Damage of deletions by survival probability (not in the papers)."""

import numpy as np
from scipy import stats

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, delete_one, no_gates


def measure(lab: Lab) -> Result:
    """Correlate p_l, or the depth l/L, with the damage of deletions in points."""
    place = (np.arange(lab.num_blocks) + 1) / lab.num_blocks
    by, x = ("l/L", place) if lab.survival is None else ("p_l", lab.survival)
    marks = delete_one.measure(lab)["blocks"]
    deletable = np.array([mark["deletable"] for mark in marks])
    inner = deletable & ~np.array([mark["transition"] for mark in marks])
    damage = np.array(lab.damage)
    return {
        "measured_on": lab.test_images,
        "by": by,
        "x": x.tolist(),
        "damage_points": damage.tolist(),
        "deletable": deletable.tolist(),
        "transition": [mark["transition"] for mark in marks],
        "spearman": _spearman(x[deletable], damage[deletable]),
        "spearman_without_transitions": _spearman(x[inner], damage[inner]),
    }


def _spearman(x, y):
    """Return the rank correlation and its p-value, or None if x or y is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found = stats.spearmanr(x, y)
    return {"rho": float(found.statistic), "p_value": float(found.pvalue)}


def draw(results: Results) -> figures.Figure:
    """Draw the damage of each block by its survival probability or its depth."""
    figure, panels = figures.panels(len(results))
    looks = figures.styled(results)
    for axes, (label, result, style) in zip(panels, looks, strict=True):
        x, y = np.array(result["x"]), np.array(result["damage_points"])
        shown, hollow = np.array(result["deletable"]), np.array(result["transition"])
        inner, across = shown & ~hollow, shown & hollow
        found = result["spearman_without_transitions"]
        correlation = (
            "" if found is None else f" (Spearman's $\\rho$: {found['rho']:.2f})"
        )
        dots = {**style, "linestyle": ""}
        axes.plot(x[inner], y[inner], **dots, label=f"{label}{correlation}")
        if across.any():
            marker = {**dots, **figures.HOLLOW, "label": f"{label}: transition"}
            axes.plot(x[across], y[across], **marker)
        by = {"p_l": "survival probability $p_l$", "l/L": "depth $l/L$"}[result["by"]]
        figures.finish(axes, title=label, xlabel=by, ylabel="damage (points)")
    return figure


def describe(result: Result) -> str:
    """Describe the correlation and its significance."""
    found = result["spearman_without_transitions"]
    name = {"p_l": "the survival probability p_l", "l/L": "the depth l/L"}[result["by"]]
    if found is None:
        return f"The rank correlation with {name} is undefined: a variable is constant."
    rho, p, whole = found["rho"], found["p_value"], result["spearman"]["rho"]
    verdict = f"The larger {name}, the {'larger' if rho > 0 else 'smaller'} the damage."
    if p > 0.05:
        verdict = "It is not significant."
    return (
        f"The rank correlation of {name} with the damage of deleting block l is "
        f"{rho:.2f} (p = {p:.2g}) without transitions and {whole:.2f} with them. "
        f"{verdict}"
    )


STUDY = Study(
    "Survival probability and damage",
    "Damage of deleting block l, in points of test error, by its survival probability, "
    "or by its depth at constant depth (not in the papers).",
    *(measure, draw, describe),
    order=10,
    missing=no_gates,
)
