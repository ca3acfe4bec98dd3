# SPDX-License-Identifier: Apache-2.0
"""Drawn networks as an ensemble: measurement, figure and text."""

from functools import partial

import jax
import numpy as np
import pytest

from experiments.studies.gate_ensemble import NETWORKS, STUDY
from rn_jax import StochasticDepth, eval_gates
from rn_jax.analysis import ensemble
from rn_jax.models.resnet import ResNet
from rn_jax.models.swapout import Swapout


def test_errors_from_the_predictions_of_each_network(make_lab):
    settings = StochasticDepth(0.2)
    model = ResNet((3,), num_classes=3, features=(4,), stochastic_depth=settings)
    lab = make_lab(model, seed=5, factors="drop")  # the test rule is not dropped
    found = STUDY.measure(lab)
    assert found["sizes"] == [1, 2, 4, 8, 16, 32]
    assert [len(e) for e in found["error_percent"]] == [32, 16, 8, 4, 2, 1]
    gates = ensemble.draw_networks(5, settings, 3, NETWORKS)
    assert found["error_percent"][0] == pytest.approx([lab.error(g) for g in gates])
    total = np.sum([lab.probabilities(g) for g in gates], axis=0)
    error = 100 * np.mean(total.argmax(axis=1) != lab.labels)
    assert found["error_percent"][-1] == pytest.approx([error])
    rule = lab.error(eval_gates(settings, 3))
    assert found["test_rule_error_percent"] == rule
    assert found["open_blocks_mean"] == pytest.approx(gates.sum() / NETWORKS)


def test_networks_of_swapout_draw_their_masks(make_lab):
    model = ResNet((2,), num_classes=3, features=(4,), block=Swapout)
    lab = make_lab(model, seed=5)
    found = STUDY.measure(lab)
    keys = [jax.random.fold_in(jax.random.key(5), n) for n in range(NETWORKS)]
    draws = [lab.probabilities(lab.gates, key) for key in keys]
    assert len({draw.tobytes() for draw in draws}) == NETWORKS
    error = 100 * np.mean(np.mean(draws, axis=0).argmax(axis=1) != lab.labels)
    assert found["error_percent"][-1] == pytest.approx([error])
    assert found["test_rule_error_percent"] == lab.error(lab.gates)
    assert found["open_blocks_mean"] is None
    # With masks that keep every unit, all networks are the same.
    kept = partial(Swapout, keep_shortcut=(1.0, 1.0), keep_branch=(1.0, 1.0))
    lab = make_lab(model.copy(block=kept), seed=5)
    assert STUDY.missing(lab.subject) is None
    found = STUDY.measure(lab)
    assert set(found["error_percent"][0]) == {found["test_rule_error_percent"]}


def result(rule=3.0):
    return {
        "num_blocks": 4,
        "images": 100,
        "sizes": [1, 2],
        "error_percent": [[10.0, 20.0], [6.0]],
        "test_rule_error_percent": rule,
        "open_blocks_mean": 2.5,
    }


def test_words():
    told = STUDY.describe(result())
    assert "with 2.5 of 4 blocks open on average, has 15.00 % test error" in told
    assert "(mean of 2; 10.00 to 20.00)" in told
    assert "predictions of 2 such networks lowers it: 6.00 %" in told
    assert "has 3.00 %, and is more accurate than the average." in told
    assert "is less accurate than the average" in STUDY.describe(result(8.0))
    assert "to within one test image" in STUDY.describe(result(7.0))
    told = STUDY.describe({**result(), "open_blocks_mean": None})
    assert "A single drawn network has 15.00 % test error" in told
    assert "every mask replaced by its mean, has 3.00 %" in told


def test_figure():
    [axes] = STUDY.draw({"a": result()}).axes
    means, singles, pairs, rule, *_ = axes.get_lines()
    assert list(means.get_xdata()) == [1, 2] and list(means.get_ydata()) == [15, 6]
    assert list(singles.get_ydata()) == [10, 20] and list(pairs.get_ydata()) == [6]
    assert set(rule.get_ydata()) == {3}
