# SPDX-License-Identifier: Apache-2.0
"""Survival probability and damage: figure and text for given numbers."""

from experiments.studies.survival_damage import STUDY

RESULT = {
    "by": "l/L",
    "x": [0.25, 0.5, 0.75, 1.0],
    "damage_points": [3.0, 9.0, 1.0, 0.0],
    "deletable": [True, True, True, False],
    "transition": [False, True, False, False],
    "spearman": {"rho": -0.5, "p_value": 0.6},
    "spearman_without_transitions": {"rho": -1.0, "p_value": 0.01},
}


def test_words():
    told = STUDY.describe(RESULT)
    assert "rank correlation of the depth l/L" in told and "is -1.00 (p = 0.01)" in told
    assert "The larger the depth l/L, the smaller the damage." in told
    constant = {**RESULT, "by": "p_l", "spearman_without_transitions": None}
    assert "with the survival probability p_l is undefined" in STUDY.describe(constant)


def test_figure():
    [axes] = STUDY.draw({"a": RESULT}).axes
    inner, hollow = axes.get_lines()
    assert list(inner.get_xdata()) == [0.25, 0.75]
    assert list(inner.get_ydata()) == [3, 1]
    assert (list(hollow.get_xdata()), list(hollow.get_ydata())) == ([0.5], [9])
    assert axes.get_title() == "a"
    assert inner.get_label() == r"a (Spearman's $\rho$: -1.00)"
    assert axes.get_xlabel() == "depth $l/L$"
