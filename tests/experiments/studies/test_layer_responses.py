# SPDX-License-Identifier: Apache-2.0
"""Responses of the layers: measurement, figure and text."""

from experiments.studies.layer_responses import STUDY
from rn_jax.models.resnet import ResNet


def test_every_layer_once(make_lab):
    found = STUDY.measure(make_lab(ResNet((2,), num_classes=3, features=(4,))))
    assert found["measured_on"] == "40 of 40 test images"
    assert found["layers"] == [
        f"stage1/block0{block}/conv{conv}" for block in (1, 2) for conv in (1, 2)
    ]
    assert min(found["standard_deviation"]) > 0


def test_words_and_figure():
    result = {"layers": ["a", "b", "c"], "standard_deviation": [1.0, 3.0, 2.0]}
    assert "of 3 layers is 2.00; it ranges from 1.00 to 3.00 (b)" in STUDY.describe(
        result
    )
    in_order, by_magnitude = STUDY.draw({"net": result}).axes
    assert list(in_order.get_lines()[0].get_ydata()) == [1, 3, 2]
    assert list(by_magnitude.get_lines()[0].get_ydata()) == [3, 2, 1]
    assert in_order.get_ylim()[0] == 0
