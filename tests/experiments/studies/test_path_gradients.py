# SPDX-License-Identifier: Apache-2.0
"""Gradient by path length: figure and text for given numbers."""

import numpy as np

from experiments.studies.path_gradients import STUDY


def result(mean):
    about = {"mean": mean, "interval_95": [1, 2], "weights": [0, 3, 1, 0, 0]}
    return {
        "relative_mean": [1.0, 0.5, 0.25, 0.125, 0.0],
        "contribution": about,
        "contribution_of_norms": about,
        "paths": {"mean": 2.0, "weights": [0.1, 0.2, 0.4, 0.2, 0.1]},
    }


def test_words():
    assert "shrinks by a factor of 2.00" in STUDY.describe(result(1.0))
    assert "These are 60 % of all paths" in STUDY.describe(result(1.0))
    assert "As in the paper" in STUDY.describe(result(1.5))
    assert "not by as much as in the paper" in STUDY.describe(result(1.7))
    assert "here they are not" in STUDY.describe(result(2.0))


def test_figure():
    number, strength, product = STUDY.draw({"a": result(1.0)}).axes
    for axes, values in (
        (number, result(1.0)["paths"]["weights"]),
        (strength, result(1.0)["relative_mean"]),
        (product, [0, 0.75, 0.25, 0, 0]),
    ):
        np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), values)
    assert strength.get_yscale() == "log"
    labels = [text.get_text() for text in product.get_legend().get_texts()]
    assert labels == ["a", "95 %: 1 to 2"]
