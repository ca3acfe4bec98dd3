# SPDX-License-Identifier: Apache-2.0
"""Figures of one run, by what is drawn."""

import numpy as np

from experiments.training import plots

LINES = [
    {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "test_loss": 2 / epoch,
        "train_error_percent": 10.0 / epoch,
        "test_error_percent": 20.0 / epoch,
        "learning_rate": rate,
    }
    for epoch, rate in ((1, 0.1), (2, 0.1), (3, 0.01))
]


def test_learning_curves():
    figure = plots.learning_curves(LINES)
    for axes, name in zip(figure.axes, ("loss", "error_percent"), strict=True):
        train, test, change = axes.get_lines()
        assert [train.get_label(), test.get_label()] == ["train", "test"]
        for line in (train, test):
            assert list(line.get_xdata()) == [1, 2, 3]
            values = [epoch[f"{line.get_label()}_{name}"] for epoch in LINES]
            assert list(line.get_ydata()) == values
        assert list(change.get_xdata()) == [2, 2]
        assert [text.get_text() for text in axes.texts] == [" 0.01"]
    assert figure.axes[1].get_ylabel() == "error (%)"


def test_a_single_epoch_is_a_dot():
    figure = plots.learning_curves(LINES[:1])
    assert {line.get_marker() for line in figure.axes[0].get_lines()} == {"o"}


def test_survival():
    opened = np.array([0.9, 0.4])
    figure = plots.survival([1.0, 0.5], opened)
    [axes] = figure.axes
    assert [bar.get_height() for bar in axes.patches] == list(opened)
    [line] = axes.get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [1, 0.5])
