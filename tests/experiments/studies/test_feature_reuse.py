# SPDX-License-Identifier: Apache-2.0
"""Feature reuse: figure and text for given numbers."""

import numpy as np

from experiments.studies.feature_reuse import STUDY

# Sources in rows: the input and two layers. The readers: two layers, and what follows.
EVEN = [[1.0, 1.0, 1.0], [None, 1.0, 1.0], [None, None, 1.0]]
LEANING = [[3.0, 1.0, 1.0], [None, 3.0, 1.0], [None, None, 4.0]]


def result(*blocks):
    return {"blocks": list(blocks)}


def test_words():
    even = STUDY.describe(result(EVEN))
    assert "over its sources, by entropy, is 100 % (0 %: only one" in even
    assert "For the transitions and the classifier it is 100 %." in even
    assert "input of their block 1.00 times" in even
    assert "the later half of its sources 1.00 times" in even
    told = STUDY.describe(result(EVEN, LEANING))
    # Shares of 1/4 and 3/4 are as even as 1.755 of 2; of 1/6, 1/6 and 2/3, 2.38 of 3.
    assert "over its sources, by entropy, is 88 % (" in told
    assert "For the transitions and the classifier it is 100 %, 69 %." in told
    assert "input of their block 1.00, 0.33 times" in told
    assert "the later half of its sources 2.50 times" in told


def test_figure():
    figure = STUDY.draw({"a": result(EVEN, LEANING), "b": result(EVEN)})
    first, second, other, bar = figure.axes
    titles = [axes.get_title() for axes in (first, second, other)]
    assert titles == ["a: block 1", "a: block 2", "b: block 1"]
    [image] = second.get_images()
    shown = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_allclose(shown, np.array(LEANING, float) / 4)
    [frame] = second.patches
    assert (frame.get_x(), frame.get_width(), frame.get_height()) == (2.5, 1, 3)
    assert frame.get_label() == "transition, or classifier"
    assert second.get_xlabel() == "reading layer $l$"
    assert all(x == round(x) for x in [*second.get_xticks(), *second.get_yticks()])
    assert bar.get_ylabel() == "mean absolute weight"
