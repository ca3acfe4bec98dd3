# SPDX-License-Identifier: Apache-2.0
"""The weights of the branches: measurement, figure and text."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

import rn_jax
from experiments.studies.branch_weights import STUDY, median, weights
from rn_jax.models.resnet import PlainLayer, ResNet

MODEL = ResNet((2, 2), num_classes=3, features=(4, 8))


def result(kernel, scale, response):
    names = [f"stage1/block0{i}" for i in range(1, len(kernel) + 1)]
    return {
        "block_names": names,
        "kernel": kernel,
        "scale": scale,
        "response": response,
    }


def relative_to_start(lab, scale):
    """The study of the lab's network with its start times a number as weights."""
    images = np.zeros((1, 8, 8, 3), np.float32)
    init = jax.jit(partial(lab.model.init, train=False))
    start = init(jax.random.key(lab.seed), images)["params"]
    variables = {**lab.subject.variables, "params": jax.tree.map(scale, start)}
    lab.subject = dataclasses.replace(lab.subject, variables=variables)
    return STUDY.measure(lab)


def test_weights_relative_to_those_of_the_start(make_lab):
    found = relative_to_start(make_lab(MODEL, seed=3), lambda leaf: 0.25 * leaf)
    np.testing.assert_allclose(found["kernel"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(found["scale"], 0.25, rtol=1e-6)
    assert found["measured_on"] == "40 of 40 test images"


def test_responses_by_captured_values(make_lab):
    """F(x) as it is sown, and h(x) of identity shortcuts: the block's input."""
    lab = make_lab(MODEL)
    found = STUDY.measure(lab)
    names = [block.name for block in lab.blocks]
    variables = lab.subject.variables
    images = lab.subject.preprocess(lab.subject.test.images[:40])

    @jax.jit
    def run(images):
        inputs = rn_jax.features(MODEL, variables, images, names)
        kept = {"train": False, "mutable": ["intermediates"]}
        return inputs, MODEL.apply(variables, images, **kept)[1]

    inputs, sown = run(images)
    branches = rn_jax.unstack(sown)["intermediates"]
    for i, block in enumerate(lab.blocks):
        if block.same_shape and i:
            stage, name = block.name.split("/")
            [branch] = branches[stage][name]["residual"]
            expected = np.linalg.norm(branch) / np.linalg.norm(inputs[names[i - 1]])
            assert found["response"][i] == pytest.approx(expected, rel=1e-4)


def test_networks_without_batch_norm_or_shortcuts(make_lab):
    found = STUDY.measure(make_lab(MODEL.copy(norm="none")))
    assert found["scale"] == [None] * 4 and min(found["kernel"]) > 0
    plain = STUDY.measure(make_lab(MODEL.copy(block=PlainLayer)))
    assert plain["response"] == [None] * 4 and min(plain["kernel"]) > 0
    assert "responds" not in STUDY.describe(plain)


def test_medians_words_and_figure():
    found = result([1.0, 3.0, 2.0], [0.5, None, 0.25], [4.0, 5.0, 6.0])
    assert [median(found, k) for k in ("kernel", "scale", "response")] == [2, 0.375, 5]
    assert weights(found) == 0.375
    assert weights(result([1.0, 3.0, 2.0], [None] * 3, [None] * 3)) == 2
    assert weights(result([0.1], [4.0], [None])) == 4  # BatchNorm undoes the kernel
    told = STUDY.describe(found)
    assert "kernels have 2.00 times their initial norm and the scales have 0.38" in told
    assert "responds with 5.00 times the norm of its shortcut" in told
    nothing = result([None], [None], [None])
    assert median(nothing, "kernel") is None
    assert "all weights began at 0" in STUDY.describe(nothing)
    left, right = STUDY.draw({"net": found, "plain": nothing}).axes
    assert list(left.get_lines()[0].get_ydata()) == [1, 3, 2]
    assert list(right.get_lines()[0].get_ydata()) == [4, 5, 6]
    cells = [cell(found) for cell in STUDY.columns.values()]
    assert cells == ["2.00", "5.00"]
    assert [cell(nothing) for cell in STUDY.columns.values()] == ["", ""]
