# SPDX-License-Identifier: Apache-2.0
"""Labels in figures."""

import pytest
from matplotlib import cbook
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
    shown = text.get_text()
    assert not cbook.is_math_text(shown)
    assert shown.replace(r"\$", "$").strip(" ") == label
