# SPDX-License-Identifier: Apache-2.0
"""Summed and concatenated features: figure and text for given numbers."""

from experiments.studies.combined_features import STUDY


def result(how="sum", ratio=1.5):
    return {
        "combined_by": how,
        "carried": [1.0, 2.0, 4.0],
        "added": [1.0, 1.0, 1.0],
        "combined": [1.5, 2.0, 4.5],
        "distance": [0.5, 0.2, 0.1],
        "variance_ratio": [1.0, ratio, 2.0],
        "concatenated_ratio": [1.0, 1.25, 1.5],
    }


def test_words():
    told = STUDY.describe(result())
    assert "0.50 times the standard deviation of what it carries" in told
    assert "is 0.20 in the median and 0.50 at most" in told
    assert "sum is 1.50 times the mean of both" in told
    assert "concatenation would be 1.25 times the mean" in told
    assert "concatenation increases the variance does not hold here" in told
    assert "increases the variance holds here" in STUDY.describe(result(ratio=1.1))
    assert "have 1.50 times the mean of their" in STUDY.describe(result("concat"))


def test_figure():
    parts, distance, ratio = STUDY.draw({"a": result(), "b": result("concat")}).axes
    carried, added, *_ = parts.get_lines()
    assert list(carried.get_ydata()) == [1, 2, 4]
    assert list(added.get_ydata()) == [1, 1, 1]
    assert list(distance.get_lines()[0].get_ydata()) == [0.5, 0.2, 0.1]
    assert list(ratio.get_lines()[0].get_ydata()) == [1, 1.5, 2]
    assert parts.get_legend_handles_labels()[1] == [
        *("a: carried", "a: added", "b: carried", "b: concatenated")
    ]
