# SPDX-License-Identifier: Apache-2.0
"""Lengths of paths by the form of stochastic depth: figure and text."""

import pytest

from experiments.studies.path_lengths import STUDY
from rn_jax import StochasticDepth
from rn_jax.models.resnet import ResNet


@pytest.mark.parametrize(
    "fields, mean_open, mean_length",
    [
        ({"schedule": "uniform", "num_open": 2}, 2, 1),
        ({"schedule": (0.9, 0.8, 0.5)}, 2.2, 1.1),
        ({"schedule": "uniform", "granularity": "subset"}, 1.5, 0.75),
    ],
)
def test_lengths(fields, mean_open, mean_length, make_lab):
    depth = StochasticDepth(**fields)
    model = ResNet((2, 1), num_classes=3, features=(4, 8), stochastic_depth=depth)
    found = STUDY.measure(make_lab(model, bounds=((1, 2),)))
    assert found["open_blocks"]["mean"] == pytest.approx(mean_open)
    assert found["paths_in_training"]["mean"] == pytest.approx(mean_length)
    [share] = found["paths"]["shares"]
    assert share == {"from": 1, "to": 2, "share": pytest.approx(6 / 8)}
    if "num_open" in fields:
        assert found["open_blocks"]["weights"] == pytest.approx([0, 0, 1, 0])
    told = STUDY.describe({**found, "num_blocks": 3})
    assert "All 2^3 paths: mean 1.5, 95 % between 0 and 3; 1 to 2: 75 %." in told
    assert f"Open blocks in training: mean {mean_open:.1f}" in told
    [axes] = STUDY.draw({"a": found}).axes
    assert [line.get_label().partition(" (")[0] for line in axes.get_lines()] == [
        *("a: all paths", "a: open blocks in training", "a: paths in training")
    ]
    assert list(axes.get_lines()[0].get_ydata()) == found["paths"]["weights"]
