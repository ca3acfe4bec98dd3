# SPDX-License-Identifier: Apache-2.0
"""The gradient's magnitude: figure and text for given numbers."""

from experiments.studies.gradient_magnitude import STUDY

GRADIENTS = {
    "sd": {
        "epochs": [1, 2, 3],
        "first_gradient": [2.0, 2.0, 4.0],
        "learning_rate": [0.1, 0.1, 0.01],
    },
    "constant": {
        "epochs": [2, 3],
        "first_gradient": [2.0, 1.0],
        "learning_rate": [0.1, 0.01],
    },
}


def test_words_and_figure():
    told = STUDY.compare(GRADIENTS)
    assert "sd to constant: median 2.50, 4.00 after the rate drops" in told
    assert "is 2.67e+00 nats" in STUDY.describe(GRADIENTS["sd"])
    [axes] = STUDY.draw(GRADIENTS).axes
    first, drop, second, *_ = axes.get_lines()
    assert list(first.get_ydata()) == [2, 2, 4] and first.get_label() == "sd"
    assert list(drop.get_xdata()) == [2.5, 2.5]
    assert list(second.get_xdata()) == [2, 3] and axes.get_yscale() == "log"
