# SPDX-License-Identifier: Apache-2.0
"""Training on short paths: figure and text for given numbers."""

from experiments.studies.short_paths import STUDY

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


def test_words_and_figure():
    assert "From epoch 2 on, 2 of 4 blocks were open in every" in STUDY.describe(SHORT)
    assert "reports 5.96 % on CIFAR-10 with 23 of 54 open" in STUDY.describe(SHORT)
    assert "mean 1.0, 95 % between 0 and 2" in STUDY.describe(SHORT)
    other = {**SHORT, "open_in_training": None, "stochastic_depth": False}
    assert STUDY.describe(other) == "Trained with all blocks open: 10.00 % test error."
    [axes] = STUDY.draw({"k": SHORT, "all": other}).axes
    short, began, whole = axes.get_lines()
    assert short.get_label() == "k (exactly 2 blocks open)"
    assert whole.get_label() == "all (all blocks)"
    assert list(short.get_ydata()) == [30, 20, 10]
    assert list(began.get_xdata()) == [1, 1]
