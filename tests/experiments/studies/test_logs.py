# SPDX-License-Identifier: Apache-2.0
"""Studies of a run's log: training on short paths, and the gradient's magnitude."""

from experiments.studies import gradient_magnitude, short_paths

SHORT = {
    "epochs": [1, 2, 3],
    "test_error_by_epoch": [30.0, 20.0, 10.0],
    "open_in_training": 2,
    "from_epoch": 1,
    "test_error_percent": 10.0,
    "stochastic_depth": True,
    "num_blocks": 4,
    "paths_in_training": {"mean": 1.0, "interval_95": [0, 2], "shares": []},
}


def test_short_paths_in_words_and_drawn():
    study = short_paths.STUDY
    assert "From epoch 2 on, 2 of 4 blocks were open in every" in study.tell(SHORT)
    assert "mean 1.0, 95 % within 0 to 2" in study.tell(SHORT)
    other = {**SHORT, "open_in_training": None, "stochastic_depth": False}
    assert study.tell(other) == "Trained with all blocks open: 10.00 % test error."
    [axes] = study.draw({"k": SHORT, "all": other}).axes
    short, began, whole = axes.get_lines()
    assert short.get_label() == "k (exactly 2 blocks open)"
    assert whole.get_label() == "all (all blocks)"
    assert list(short.get_ydata()) == [30, 20, 10]
    assert list(began.get_xdata()) == [1, 1]


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


def test_gradients_in_words_and_drawn():
    study = gradient_magnitude.STUDY
    told = study.compare(GRADIENTS)
    assert "sd over constant: 2.50 at the median, 4.00 after the rate drops" in told
    assert "is 2.67e+00 nats" in study.tell(GRADIENTS["sd"])
    [axes] = study.draw(GRADIENTS).axes
    first, drop, second, *_ = axes.get_lines()
    assert list(first.get_ydata()) == [2, 2, 4] and first.get_label() == "sd"
    assert list(drop.get_xdata()) == [2.5, 2.5]
    assert list(second.get_xdata()) == [2, 3] and axes.get_yscale() == "log"
