# SPDX-License-Identifier: Apache-2.0
"""The figure of a sweep, by what is drawn."""

import numpy as np
import pytest

from experiments import sweep_plots


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([0.2, 1.0], [0.2, 1.0]),
        (["resnet20", "resnet110"], [20, 110]),
        (["a_6_b", "a_10_b"], [6, 10]),
        (["wrn16_8", "wrn40_4"], None),
        (["resnet20", "plain20"], None),
        ([True, False], None),
        ([None, 1], None),
        ([3, 3], None),
    ],
)
def test_which_fields_are_numbers(values, numbers):
    rows = [{"field": value} for value in values]
    assert sweep_plots.as_numbers(rows, "field") == numbers


def draw(rows, means):
    none = [None] * len(rows)
    return sweep_plots.draw(rows, means, none, label="error").axes


def test_picture_of_one_number_is_lines():
    rows = [{"p": p, "rule": r} for p in (0.5, 0.1) for r in ("linear", "uniform")]
    [axes] = draw(rows, [1, 2, 3, None])
    lines = {c.get_label(): c[0].get_xydata().tolist() for c in axes.containers}
    assert lines["rule = linear"] == [[0.1, 3], [0.5, 1]]
    assert lines["rule = uniform"][1] == [0.5, 2]
    assert np.isnan(lines["rule = uniform"][0][1])


def test_picture_of_two_numbers_is_a_heat_map():
    rows = [{"p": p, "net": n} for p in (0.5, 0.1) for n in ("r110", "r20")]
    axes = draw(rows, [1, 2, 3, None])[0]
    grid = axes.images[0].get_array()  # p to the right, the depth upwards
    np.testing.assert_array_equal(grid.filled(-1), [[-1, 2], [3, 1]])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["r20", "r110"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.1", "0.5"]


def test_names_are_those_of_papers():
    names = ("stochastic_depth.last_survival", "model", "learning_rate")
    assert list(map(sweep_plots.name_of, names)) == [
        *("survival probability $p_L$", "network", "learning rate")
    ]
    [axes] = draw([{"model": f"resnet{n}"} for n in (20, 110, 56)], [3, 1, 2])
    assert axes.get_xlabel() == "network"
    ticks = dict(zip(axes.get_xticks(), axes.get_xticklabels(), strict=True))
    assert {x: t.get_text() for x, t in ticks.items()} == {
        n: f"resnet{n}" for n in (20, 56, 110)
    }


def test_picture_without_numbers_is_dots():
    rows = [{"rule": "linear"}, {"rule": "uniform"}]
    [axes] = draw(rows, [1, 2])
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        *("rule = linear", "rule = uniform")
    ]
    assert axes.containers[0][0].get_xdata().tolist() == [1, 2]
