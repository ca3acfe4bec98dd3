# SPDX-License-Identifier: Apache-2.0
"""Deleting one block: figure and text for given numbers."""

import numpy as np

from experiments import figures
from experiments.studies.delete_one import STUDY


def result(errors, base=5.0, transitions=(), **more):
    blocks = [
        {
            "name": f"stage1/block{i:02d}",
            "stage": 1,
            "transition": i in transitions,
            "deletable": error is not None,
            "error_percent": error,
        }
        for i, error in enumerate(errors)
    ]
    facts = {"residual": True, "has_shortcuts": True, "num_classes": 10}
    return {"blocks": blocks, "baseline_error_percent": base, **facts, **more}


def test_words():
    robust = STUDY.describe(result([5.0, 5.5, 30.0, 6.0], transitions=(2,)))
    assert "only transitions have a visible effect, as here." in robust
    unharmed = STUDY.describe(result([5.0, 5.5, 6.0, 4.0], transitions=(2,)))
    assert "here transitions cost no more than other blocks." in unharmed
    young = STUDY.describe(result([60.0, 50.0, 90.0], base=50.0, transitions=(2,)))
    assert "is too inaccurate to be" in young and "visible effect" not in young
    assert "costs 0.50 points in the median and 1.00 at most; 3 of these" in robust
    assert "transitions, whose shortcut remains, costs 25.00 points" in robust
    needed = STUDY.describe(result([40.0, 5.0, 5.0]))
    assert "here these blocks cost more than 5 points: stage1/block00." in needed
    both = STUDY.describe(result([40.0, 5.0, 30.0], transitions=(2,)))
    assert "here these blocks also cost more than 5 points: stage1/block00." in both
    plain = {"residual": False, "has_shortcuts": False}
    broken = STUDY.describe(result([None, 90.0, 60.0, 20.0], **plain))
    assert "2 of 3 deletions raise the error above 48 %" in broken
    assert "Layers that change the shape cannot be deleted: 1." in broken
    dense = STUDY.describe(result([5.0, 50.0], residual=False))
    assert "Each deletion leaves half of all paths." in dense
    assert "half of all paths" not in broken
    activated = result([5.0, 5.0], preactivation=False)
    assert "here a ReLU follows each sum" in STUDY.describe(activated)
    assert "agrees" not in dense and "The paper does not study such" in dense


def test_figure():
    [axes] = STUDY.draw({"a": result([None, 9.0, 30.0], transitions=(2,))}).axes
    line, hollow, fixed, whole, *_ = axes.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, 9, 30])
    assert (hollow.get_xdata(), hollow.get_ydata()) == ([3], [30])
    assert (fixed.get_xdata(), fixed.get_ydata()) == ([1], [5])
    assert set(whole.get_ydata()) == {5}
    assert axes.get_legend_handles_labels()[1] == [
        *("a", "a: transition", "changes the shape: not deletable", "whole network")
    ]
    assert axes.get_xlabel() == "deleted block $l$"
    assert axes.get_ylabel() == "test error (%)" and axes.get_ylim()[0] == 0


def test_relative_depth():
    results = {"a": result([5.0, 9.0]), "b": result([5.0, 7.0, 6.0, 8.0])}
    with figures.using(figures.Style(relative_depth=True)):
        [axes] = STUDY.draw(results).axes
    lines = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
    assert lines["a"] == [0.5, 1] and lines["b"] == [0.25, 0.5, 0.75, 1]
    assert axes.get_xlabel() == "relative depth of the deleted block"


def test_columns():
    cells = [cell(result([5.0, 7.0, 6.0])) for cell in STUDY.columns.values()]
    assert cells == ["1.00", "2.00"]
