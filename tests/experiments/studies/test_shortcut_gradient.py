# SPDX-License-Identifier: Apache-2.0
"""The gradient through shortcuts: measurement, figure and text."""

import numpy as np
import pytest

from experiments.studies.shortcut_gradient import STUDY, by_block, by_stage, kept
from rn_jax.models.preact import FullPreactivation
from rn_jax.models.resnet import ResNet

# Two stages of three blocks; the first of each changes the shape.
NAMES = [f"stage{stage}/block0{block}" for stage in "12" for block in "123"]
SHAPES = [False, True, True] * 2


def result(*norms, whole=(8.0, 7.0, 6.0, 5.0, 4.0, 2.0)):
    found = {"block_names": NAMES, "same_shape": SHAPES}
    return {**found, "shortcuts": list(norms), "whole": list(whole)}


def test_blocks_that_keep_the_shape():
    """From the second block to the next stage's input, or to the last block's."""
    found = result(1.0, 2.0, 3.0, 8.0, 5.0, 20.0)
    assert by_stage(found) == {"stage1": 0.25, "stage2": 0.25}
    assert kept(found) == 0.0625
    assert by_block(found) == np.median([2 / 3, 3 / 8, 5 / 20])
    cut = result(0.0, 0.0, 0.0, 0.0, 5.0, 20.0)
    assert by_stage(cut) == {"stage2": 0.25} and kept(cut) == 0
    assert by_block(cut) == 0.25
    assert by_stage(result(*[0.0] * 6)) == {} and by_block(result(*[0.0] * 6)) == 0


def test_words_and_figure():
    unchanged = STUDY.describe(result(1.0, 2.0, 2.0, 2.0, 5.0, 5.0))
    assert "leave the gradient as it is: they multiply its norm by 1 in" in unchanged
    told = STUDY.describe(result(1.0, 2.0, 3.0, 8.0, 5.0, 20.0))
    assert "leave 0.062 times the gradient" in told
    assert "by 0.25 in stage1, 0.25 in stage2. With all branches" in told
    assert "of the first block is 4 times that of the last" in told
    assert "No gradient" in STUDY.describe(result(*[0.0] * 6))
    [axes] = STUDY.draw({"net": result(1.0, 2.0, 3.0, 8.0, 5.0, 20.0)}).axes
    shortcuts, whole = axes.get_lines()
    assert list(shortcuts.get_ydata()) == [0.05, 0.1, 0.15, 0.4, 0.25, 1]
    assert list(whole.get_ydata()) == [4, 3.5, 3, 2.5, 2, 1]
    [axes] = STUDY.draw({"net": result(*[0.0] * 6, whole=[0.0] * 6)}).axes
    assert np.isnan(axes.get_lines()[0].get_ydata()).all()


@pytest.mark.parametrize(
    "block", [None, pytest.param(FullPreactivation, marks=pytest.mark.slow)]
)
def test_measurement(make_lab, block):
    fields = {"block": block} if block else {}
    lab = make_lab(ResNet((3, 2), num_classes=3, features=(4, 8), **fields))
    found = STUDY.measure(lab)
    assert found["block_names"] == [block.name for block in lab.blocks]
    assert (kept(found) == 1) == (block is not None)
    assert 0 < kept(found) <= 1
    assert STUDY.measure(lab) == found
