# SPDX-License-Identifier: Apache-2.0
"""Many runs: seeds, their folders, resuming, and what is reported."""

import json

import fake
import numpy as np
import pytest
from driver import arguments, in_process

from experiments import run
from experiments.training import loop, many_runs
from rn_jax import InputError


def test_parse_seeds():
    assert many_runs.parse_seeds("5") == [0, 1, 2, 3, 4]
    assert many_runs.parse_seeds("7,0,3") == [7, 0, 3]
    assert many_runs.parse_seeds(2) == many_runs.parse_seeds([0, 1]) == [0, 1]
    assert many_runs.parse_seeds([7]) == [7]
    for bad in ("0", "", "a", "1,,2", "-1", "1.5", "0,3,", 0, -1, [], [-1], [1.5]):
        with pytest.raises(InputError, match="--seeds must be a number of seeds"):
            many_runs.parse_seeds(bad)
    with pytest.raises(InputError, match="a seed twice: 1,2,1"):
        many_runs.parse_seeds("1,2,1")


def test_describe_by_hand():
    found = many_runs.describe([6.0, 8.0, 7.0, 9.0])
    assert found["each"] == [6.0, 8.0, 7.0, 9.0]
    assert (found["best"], found["median"], found["mean"]) == (6.0, 7.5, 7.5)
    assert found["std"] == pytest.approx(np.sqrt(5 / 3))
    assert many_runs.describe([5.0])["std"] is None


OPTIONS = ["--seeds=0,4", "--config.epochs=1", "--config.protocol=45k5k"]


def test_every_seed_has_a_folder_and_is_trained_once(tmp_path, monkeypatch, capsys):
    argv = arguments(tmp_path, *OPTIONS)
    trained = []
    original = loop.build

    def build(config, **kept):
        trained.append(config.seed)
        if config.seed == 4 and len(trained) == 2:
            raise KeyboardInterrupt  # killed before the second begins
        return original(config, **kept)

    monkeypatch.setattr(loop, "build", build)
    assert in_process(monkeypatch, argv) == 75
    assert not (tmp_path / "seeds.json").exists()
    capsys.readouterr()
    assert in_process(monkeypatch, argv) == 0
    assert trained == [0, 4, 4]
    printed = capsys.readouterr().out
    assert "2 seeds, at the best validation epoch: test error median" in printed

    found = json.loads((tmp_path / "seeds.json").read_text())
    assert found["seeds"] == [0, 4]
    for name in ("test_error_percent", "test_error_at_best_val_percent"):
        each = [
            json.loads((tmp_path / f"seed{seed}" / "summary.json").read_text())[name]
            for seed in (0, 4)
        ]
        assert found[name] == many_runs.describe(each)
    states = [
        (tmp_path / f"seed{seed}" / "metrics.jsonl").read_text() for seed in (0, 4)
    ]
    assert states[0] != states[1]


def test_a_stopped_seed_says_how_to_go_on(tmp_path, monkeypatch):
    calls = []

    def stopped(config, path, *, command, resumed_by):
        calls.append((config.seed, path, resumed_by))
        raise loop.StoppedError("Stopped by SIGTERM", "runs/a")

    monkeypatch.setattr(loop, "train", stopped)
    assert in_process(monkeypatch, arguments(tmp_path, *OPTIONS)) == 75
    assert calls == [(0, str(tmp_path / "seed0"), str(tmp_path))]
    assert not (tmp_path / "seeds.json").exists()


def test_runs_in_a_folder_are_in_the_order_of_their_numbers(tmp_path):
    names = ["rate=0.15/seed2", "rate=0.15/seed10", "rate=0.2", "rate=1.0"]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").touch()
    (tmp_path / "sweep.json").touch()
    assert many_runs.runs_in(str(tmp_path)) == [str(tmp_path / name) for name in names]
    seeds = [str(tmp_path / name) for name in names[:2]]
    assert many_runs.runs_in(str(tmp_path / "rate=0.15")) == seeds
    for alone in (str(tmp_path / "rate=0.2"), str(tmp_path / "none"), seeds[0]):
        assert many_runs.runs_in(alone) == [alone]


def test_a_notebook_passes_seeds_as_numbers(tmp_path, monkeypatch):
    fake.use(monkeypatch)
    config = [arguments("")[0]]
    for seeds, expected in ((2, [0, 1]), ([7], [7])):
        found = run.run(config, workdir=str(tmp_path), seeds=seeds)
        assert [summary["seed"] for summary in found] == expected
    with pytest.raises(InputError, match="--seeds must be a number of seeds"):
        run.run(config, workdir=str(tmp_path), seeds=0)


def test_bad_seeds_are_one_sentence(tmp_path, monkeypatch, capsys):
    argv = arguments(tmp_path / "new", "--seeds=many")
    assert in_process(monkeypatch, argv) == 2
    assert "--seeds must be a number of seeds, such as 5" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
