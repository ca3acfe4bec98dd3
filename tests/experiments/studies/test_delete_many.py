# SPDX-License-Identifier: Apache-2.0
"""Deleting several blocks: figure and text for given numbers."""

import numpy as np
import pytest

from experiments.studies.delete_many import STUDY


def result(base=5.0):
    return {
        "baseline_error_percent": base,
        "num_classes": 10,
        "num_blocks": 6,
        "has_shortcuts": True,
        "deletable": 6,
        "draws": 3,
        "deleted": [1, 2, 3, 4, 5],
        "error_percent": [[base + 5 * k - 1, base + 5 * k, 99] for k in range(1, 6)],
    }


@pytest.mark.parametrize("base, compared", [(5.0, True), (60.0, False)])
def test_words(base, compared):
    """With a comparison with the paper, or without, if the network has not learned."""
    told = STUDY.describe(result(base))
    assert f"over 3 draws is {base:.2f} % with none of 6 blocks deleted" in told
    assert f"{base + 5:.2f} % with 1, {base + 15:.2f} % with 3" in told
    assert "Of the 2^6 paths 50 %, 12 %, 3.1 % are left." in told
    assert ("rises smoothly, as in the paper" in told) == compared
    assert ("is too inaccurate to be compared" in told) != compared


def test_a_network_of_one_path():
    plain = {**result(), "has_shortcuts": False}
    assert "a single path, which each deletion cuts" in STUDY.describe(plain)
    assert len(STUDY.draw({"a": plain}).axes) == 1


def test_figure():
    axes, beside = STUDY.draw({"a": result(), "b": result(10.0)}).axes
    [left] = beside.get_lines()
    np.testing.assert_allclose(left.get_xdata(), np.arange(6))
    np.testing.assert_allclose(left.get_ydata(), 100 / 2.0 ** np.arange(6))
    medians = [line for line in axes.get_lines() if ": median" in line.get_label()]
    for line, base, shift in zip(medians, (5, 10), (-0.175, 0.175), strict=True):
        np.testing.assert_allclose(line.get_xdata(), np.arange(6) + shift)
        np.testing.assert_allclose(line.get_ydata(), base + 5 * np.arange(6))
    assert axes.get_xlabel() == "blocks deleted together, $k$"


def test_columns():
    [five] = STUDY.columns.values()
    assert five(result()) == "30.00"
    assert five({**result(), "deleted": [1, 2]}) == ""
