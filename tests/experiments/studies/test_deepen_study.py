# SPDX-License-Identifier: Apache-2.0
"""Identity by construction: measurement, figure and text."""

import numpy as np
import pytest

from experiments.studies import deepen
from experiments.studies.deepen import STUDY
from rn_jax import StochasticDepth
from rn_jax.models.preact import FullPreactivation
from rn_jax.models.resnet import PlainLayer, ResNet

SMALL = {"num_classes": 3, "features": (4,)}


@pytest.mark.parametrize(
    "model",
    [
        ResNet((2,), **SMALL, stochastic_depth=StochasticDepth(0.2)),
        pytest.param(ResNet((2,), **SMALL, block=PlainLayer), marks=pytest.mark.slow),
        pytest.param(
            ResNet((2,), **SMALL, block=FullPreactivation), marks=pytest.mark.slow
        ),
    ],
    ids=["stochastic depth", "plain", "pre-activation"],
)
def test_deeper_networks_have_the_same_error(model, make_lab):
    lab = make_lab(model)
    found = STUDY.measure(lab)
    assert [d["stage_sizes"] for d in found["deeper"]] == [[3], [4]]
    assert [d["num_blocks"] for d in found["deeper"]] == [3, 4]
    few, *more = (found["parameters"], *(d["parameters"] for d in found["deeper"]))
    assert few < more[0] and more[1] - more[0] == more[0] - few
    predicted = lab.probabilities(lab.gates).argmax(axis=1)
    error = 100 * np.mean(predicted != lab.labels)
    for deeper in found["deeper"]:
        assert deeper["error_percent"] == pytest.approx(error)
        assert deeper["largest_change_of_probability"] < 1e-5
    after = found["trained_on"]
    assert (after["images"], after["steps"]) == (40, 1)
    assert after["train_loss"][1] < after["train_loss"][0]
    # The network of the lab is as it was.
    assert lab.probabilities(lab.gates).argmax(axis=1).tolist() == predicted.tolist()


def test_training_on_follows_the_gradient(make_lab, monkeypatch):
    """It lowers the loss by more than BatchNorm's new statistics do."""
    monkeypatch.setattr(deepen, "_RATE", 0.05)
    found = STUDY.measure(make_lab(ResNet((2,), **SMALL)))["trained_on"]
    before, after = found["train_loss"]
    assert after < found["train_loss_at_rate_0"] != before


RESULT = {
    "baseline_error_percent": 4.0,
    "num_blocks": 2,
    "parameters": 1000,
    "deeper": [
        {
            "num_blocks": blocks,
            "parameters": 500 * blocks,
            "error_percent": 4.0,
            "largest_change_of_probability": 1e-6,
        }
        for blocks in (3, 4)
    ],
    "trained_on": {
        "images": 1437,
        "steps": 22,
        "learning_rate": 0.001,
        "train_loss": [0.5, 0.25],
        "train_loss_at_rate_0": 0.4,
        "error_percent": 3.0,
    },
}


def test_words_and_figure():
    told = STUDY.describe(RESULT)
    assert "With its 2 blocks (1,000 parameters) the network has 4.00 %" in told
    assert "4.00 % with 3 blocks (1,500 parameters) and 4.00 % with 4 blocks" in told
    assert "(2,000 parameters): the same. No predicted probability changes by" in told
    assert "more than 1e-06" in told
    assert "for 22 steps at a rate of 0.001" in told
    assert "loss on 1,437 training images changes from 0.5 to 0.25 (at a rate" in told
    assert "statistics, to 0.4), and its test error is 3.00 %." in told
    worse = {**RESULT["deeper"][0], "error_percent": 9.0}
    assert ": not the same." in STUDY.describe({**RESULT, "deeper": [worse]})
    [axes] = STUDY.draw({"a": RESULT}).axes
    line, trained, _ = axes.get_lines()
    assert list(line.get_xdata()) == [2, 3, 4] and set(line.get_ydata()) == {4}
    assert (list(trained.get_xdata()), list(trained.get_ydata())) == ([2], [4])
