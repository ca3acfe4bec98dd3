# SPDX-License-Identifier: Apache-2.0
"""The depth dial: figure and text for given numbers."""

from experiments.studies.depth_dial import STUDY

RESULT = {
    "closed": [0, 3, 6],
    "open": [7, 4, 1],
    "baseline_error_percent": 5.0,
    "error_percent": {
        "survival": [[5.0], [5.5], [20.0]],
        "damage": [[5.0], [6.0], [6.0]],
        "random": [[5.0, 5.0], [5.0, 9.0], [5.0, 5.0]],
    },
}


def test_words():
    told = STUDY.describe(RESULT)
    assert "Of 6 blocks, 6 can be closed at a cost of 1 point" in told
    assert "3 in order of survival" in told and "0 in random order" in told
    assert [cell(RESULT) for cell in STUDY.columns.values()] == ["6"]


def test_figure():
    left, right = STUDY.draw({"a": RESULT, "b": RESULT}).axes
    assert (left.get_title(), right.get_title()) == ("a", "b")
    survival, damage, random, whole = left.get_lines()
    assert list(survival.get_ydata()) == [5, 5.5, 20]
    assert list(damage.get_ydata()) == [5, 6, 6]
    assert (
        list(random.get_ydata()) == [5, 7, 5]
        and random.get_label() == "closed in random order"
    )
    assert list(random.get_xdata()) == [7, 4, 1] and left.xaxis_inverted()
    assert set(whole.get_ydata()) == {5}
