# SPDX-License-Identifier: Apache-2.0
"""Reordering the blocks: figure and text for given numbers."""

import pytest

from experiments.studies.permute import STUDY


def result(base=5.0):
    orders = [
        {"kendall_tau": 1 - k / 10, "error_percent": base + 5 * k, "swaps": k}
        for k in (1, 2, 3)
    ]
    facts = {"baseline_error_percent": base, "num_classes": 10, "residual": True}
    return {**facts, "pairs": 3, "orders": orders}


@pytest.mark.parametrize("base, compared", [(5.0, True), (60.0, False)])
def test_words(base, compared):
    """With a comparison with the paper, or without, if the network has not learned."""
    told = STUDY.describe(result(base))
    assert f"{base + 5:.2f} % after 1, {base + 15:.2f} % after 3 random swaps" in told
    assert "(smallest tau: 0.70)" in told
    assert ("grows with the disorder, as in the paper" in told) == compared
    assert ("is too inaccurate to be compared" in told) != compared
    other = STUDY.describe({**result(base), "residual": False})
    assert "The paper reorders only residual networks" in other


def test_figure():
    [axes] = STUDY.draw({"a": result()}).axes
    dots, trained, _ = axes.get_lines()
    assert list(dots.get_xdata()) == [0.9, 0.8, 0.7]
    assert list(dots.get_ydata()) == [10, 15, 20] and dots.get_linestyle() == "None"
    assert set(trained.get_ydata()) == {5}
    assert axes.xaxis_inverted()
