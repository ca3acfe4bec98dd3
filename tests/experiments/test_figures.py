# SPDX-License-Identifier: Apache-2.0
"""Labels in figures."""

import pytest
from matplotlib.figure import Figure

from experiments import figures


@pytest.mark.parametrize(
    "label",
    ["a$b$c", "$\\frac{$", "a\\$b$", "_a", "$HOME", "\U0001f600\t\n[x]", "a" * 255],
)
def test_a_label_is_shown_as_it_is(label, tmp_path):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=figures.as_text(label))
    [text] = axes.legend().get_texts()
    axes.set_title(figures.as_text(label))
    figures.save(figure, tmp_path / "[x]" / "a.png")  # with a warning it would fail
    shown, is_mathematics = text._preprocess_math(text.get_text())
    assert (shown.strip(" "), bool(is_mathematics)) == (label, False)
