# SPDX-License-Identifier: Apache-2.0
"""Gradient by path length: figure and text for given numbers."""

import math

import numpy as np

from experiments.studies.path_gradients import STUDY, fit_quality, shrinkage


def result(mean):
    about = {"mean": mean, "interval_95": [1, 2], "weights": [0, 3, 1, 0, 0]}
    return {
        "relative_mean": [1.0, 0.5, 0.25, 0.125, 0.0],
        "contribution": about,
        "contribution_of_norms": about,
        "paths": {"mean": 2.0, "weights": [0.1, 0.2, 0.4, 0.2, 0.1]},
        "residual": True,
    }


def test_words():
    assert "shrinks by a factor of 2.00" in STUDY.describe(result(1.0))
    assert "These are 60 % of all paths" in STUDY.describe(result(1.0))
    assert "As in the paper" in STUDY.describe(result(1.5))
    assert "not by as much as in the paper" in STUDY.describe(result(1.7))
    assert "here they are not" in STUDY.describe(result(2.0))


def test_quality_of_the_fit():
    """R^2 by numpy.corrcoef, whose square it is; zeros are left out."""
    assert "with R² = 1.000" in STUDY.describe(result(1.0))
    logarithms = [0.0, -1.0, -3.0, -4.0, -8.0]
    found = {"relative_mean": [*np.exp(logarithms), 0.0]}
    expected = np.corrcoef(np.arange(5), logarithms)[0, 1] ** 2
    np.testing.assert_allclose(fit_quality(found), expected)
    np.testing.assert_allclose(shrinkage(found), np.exp(1.9))
    assert fit_quality({"relative_mean": [1.0, 1.0, 1.0]}) == 1


def test_ranges_of_the_texts():
    assert "the texts name lengths 5 to 17 (the paper) and 9 to 18" in STUDY.describe(
        result(1.0)
    )
    weights = np.zeros(55)
    weights[[4, 5, 8, 9, 17, 18, 19]] = 1, 2, 3, 4, 5, 6, 7
    about = {"mean": 1.0, "interval_95": [4, 19], "weights": weights}
    every = {"mean": 27.0, "weights": [math.comb(54, k) / 2**54 for k in range(55)]}
    facts = {"relative_mean": np.ones(55), "contribution": about, "paths": every}
    told = STUDY.describe({**result(1.0), **facts})
    assert "50.0 % from lengths 5 to 17" in told  # 14 of 28
    assert "(0.45 % of all paths)" in told  # as the paper says
    assert "53.6 % from lengths 9 to 18" in told  # 15 of 28


def test_networks_unlike_those_of_the_paper():
    for preactivation, unlike in ((False, True), (True, False)):
        told = STUDY.describe({**result(1.0), "preactivation": preactivation})
        assert ("here a ReLU follows each sum" in told) == unlike
    assert "ReLU" not in STUDY.describe(result(1.0))  # of an earlier version
    plain = {**result(1.0), "residual": False, "preactivation": False}
    assert "ReLU" not in STUDY.describe(plain)


def test_figure():
    number, strength, product = STUDY.draw({"a": result(1.0)}).axes
    for axes, values in (
        (number, result(1.0)["paths"]["weights"]),
        (strength, result(1.0)["relative_mean"]),
        (product, [0, 0.75, 0.25, 0, 0]),
    ):
        np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), values)
    assert strength.get_yscale() == "log"
    assert product.get_legend_handles_labels()[1] == ["a", "a, 95 %: 1 to 2"]
