# SPDX-License-Identifier: Apache-2.0
"""Evaluation by the papers' protocols, through the command."""

import json

import jax
import numpy as np
import pytest
from driver import (
    arguments,
    assert_same_run,
    final_state,
    in_process,
    lines,
    stop_after,
)
from etils import epath
from tiny import TINY

from experiments.config import read_config
from experiments.training.evaluation import better, by_shape, top_error
from rn_jax import data
from rn_jax.models import MODELS

PROTOCOL = [
    "--config.protocol=45k5k",
    "--config.eval_every_steps=3",
    "--config.lr_schedule=plateau",
    "--config.plateau_patience=1",
    "--config.lr_factor=0.5",
    "--config.learning_rate=0.3",
    "--config.warmup_until_error=85",
    "--config.batch_norm_at_test=exact",
    "--config.batch_norm_examples=480",
    "--config.micro_batches=2",
    "--config.epochs=4",
    "--config.log_every_steps=1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 20 steps in 4 epochs, looked at every 3 steps."""
    workdir = tmp_path_factory.mktemp("protocol") / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(MODELS, "tiny", TINY)
        assert in_process(monkeypatch, arguments(workdir, *PROTOCOL)) == 0
    return workdir


@pytest.mark.parametrize(
    "kind", ["moving", pytest.param("exact", marks=pytest.mark.slow)]
)
def test_network_without_normalisation_is_trained_and_evaluated(
    kind, tmp_path, monkeypatch
):
    """It has no statistics to take from moving averages or to recompute."""
    monkeypatch.setitem(MODELS, "tiny", TINY)
    options = ["--config.model_kwargs.norm=none", "--config.epochs=1"]
    options += [f"--config.batch_norm_at_test={kind}", "--config.learning_rate=0.001"]
    assert in_process(monkeypatch, arguments(tmp_path / "run", *options)) == 0
    assert lines(tmp_path / "run")[-1]["test_error_percent"] <= 100
    assert not final_state(tmp_path / "run").get("batch_stats")


def test_the_rate_follows_training_and_validation_errors_alone(finished):
    """Written out once more from the errors that the run logged."""
    running, warm, scale, best, waited = 100.0, True, 1.0, np.inf, 0
    seen = []
    for line in lines(finished):
        if line["kind"] == "step":
            rate = (0.01 if warm else 0.3) * scale
            assert line["learning_rate"] == pytest.approx(rate), line["step"]
            running = 0.95 * running + 0.05 * line["train_error_percent"]
            warm = warm and running >= 85
            seen.append(rate)
        else:
            error = line["val_error_percent"]
            waited = 0 if error < best else waited + 1
            best = min(best, error)
            if waited == 1:
                scale, waited = max(scale / 2, 1 / 8), 0  # plateau_drops is 3
    assert len(seen) == 20 and len(set(seen)) > 1  # it did change


def test_evaluation_by_steps(finished):
    epochs = [ln for ln in lines(finished) if ln["kind"] == "epoch"]
    assert [ln["step"] for ln in epochs] == [3, 6, 9, 12, 15, 18, 20]
    assert [ln["epoch"] for ln in epochs] == [0.6, 1.2, 1.8, 2.4, 3, 3.6, 4]
    summary = json.loads((finished / "summary.json").read_text())
    best = min(epochs, key=lambda ln: (ln["val_error_percent"], -ln["step"]))
    assert summary["best_epoch"] == best["epoch"]
    assert summary["test_error_at_best_val_percent"] == best["test_error_percent"]


@pytest.mark.parametrize("error, is_better", [(3.9, True), (4.0, True), (4.1, False)])
def test_of_equal_validation_errors_the_later_one_is_kept(error, is_better):
    line = {"kind": "epoch", "epoch": 2, "val_error_percent": error}
    kept = {"epoch": 2, "val_error_percent": error, "test_error_percent": 5.0}
    before = {"epoch": 1, "val_error_percent": 4.0, "test_error_percent": 6.0}
    line["test_error_percent"] = 5.0
    assert better(before, line) == (kept if is_better else None)
    assert better(None, line) == kept
    assert better(None, {"epoch": 2, "test_error_percent": 5.0}) is None


@pytest.mark.slow
def test_state_of_the_schedule_is_in_the_checkpoint(finished, tmp_path, monkeypatch):
    """Stopped between two evaluations, it goes on bit for bit."""
    workdir = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_after(patch, 11)
        assert in_process(monkeypatch, arguments(workdir, *PROTOCOL)) == 75
    assert not (workdir / "summary.json").exists()
    assert in_process(monkeypatch, arguments(workdir, *PROTOCOL)) == 0
    assert_same_run(workdir, finished)


def test_saved_statistics_are_those_of_the_examples(finished):
    """Of the stem's BatchNorm after the last evaluation, by NumPy."""
    state = final_state(finished)
    config = read_config(epath.Path(finished))
    train, _ = data.split_validation(data.load("digits"), seed=config.split_seed)
    order = data.epoch_permutation(len(train), seed=0, epoch=0)[:480]
    images = data.normalizer(train, "channel")(train.images[order])
    stem = jax.lax.conv_general_dilated(
        images,
        state["['params']['stem_conv']['kernel']"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = {n: state[f"['batch_stats']['stem_bn']['{n}']"] for n in ("mean", "var")}
    np.testing.assert_allclose(found["mean"], stem.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found["var"], stem.var((0, 1, 2)), rtol=1e-4)


def test_damaged_images_have_no_dense_scores():
    def batch(label, intact):
        pixels = np.full((1, 4, 4, 3), label, np.uint8)
        return {"image": [pixels], "label": [label], "mask": [intact]}

    batches = [batch(1, True), batch(0, False), batch(2, True)]
    labels, scores = by_shape(batches, 3, 2, lambda images: images.mean(axis=(1, 2)))
    assert labels.tolist() == [1, 2]
    np.testing.assert_array_equal(scores, [[1, 1, 1], [2, 2, 2]])
    labels, _ = by_shape(batches[1:2], 1, 2, None)
    assert len(labels) == 0  # which the command refuses


def test_top_errors_by_hand():
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    labels = np.array([0, 1, 0])
    assert top_error(scores, labels, 1) == pytest.approx(200 / 3)
    assert top_error(scores, labels, 2) == pytest.approx(100 / 3)
    assert top_error(scores, labels, 3) == 0
    # Of equal scores the first class wins, as by argmax, and none is no score at all.
    assert top_error(np.ones((4, 3)), np.array([0, 1, 2, 2]), 1) == 75
    assert top_error(np.full((1, 3), np.nan), np.array([0]), 3) == 100
