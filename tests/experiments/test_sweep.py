# SPDX-License-Identifier: Apache-2.0
"""A sweep: its combinations, folders, table and picture, and going on."""

import json
import re

import fake
import numpy as np
import pytest
from driver import ROOT, in_process
from style import check_style

from experiments import sweep
from experiments.training import loop
from rn_jax import InputError

SD = "config.stochastic_depth.last_survival"


def arguments(workdir, *options):
    config = f"--config={ROOT}/configs/resnet20.py:digits"
    return [config, f"--workdir={workdir}", *options]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("config.epochs=1,2", ("epochs", ["1", "2"])),
        ("epochs=1,2", ("epochs", ["1", "2"])),
        ("--config.a.b=x", ("a.b", ["x"])),
        ("config.lr_drops=(1,2), (3,4)", ("lr_drops", ["(1,2)", "(3,4)"])),
        ("config.d={'a': [1,2]},None", ("d", ["{'a': [1,2]}", "None"])),
    ],
)
def test_parse_axis(text, expected):
    assert sweep.parse_axis(text) == expected


@pytest.mark.parametrize(
    "text", ["config.epochs=", "epochs=", "config.epochs", "config.epochs=1,,2", ""]
)
def test_a_grid_of_another_form(text):
    with pytest.raises(InputError, match=r"such as batch_size=64,128, not "):
        sweep.parse_axis(text)


def test_combinations_are_the_product_and_reach_entries_of_dicts():
    axes = [
        ("stochastic_depth.last_survival", ["0.2", "1.0"]),
        ("model_kwargs.shortcut", ["A", "B"]),
        ("epochs", ["3"]),
    ]
    base = [f"--config={ROOT}/configs/resnet20.py:digits"]  # of constant depth
    found = sweep.combinations(base, axes)
    assert [tuple(values.values()) for values, _ in found] == [
        *((0.2, "A", 3), (0.2, "B", 3), (1.0, "A", 3), (1.0, "B", 3))
    ]
    config = found[1][1]
    assert config.stochastic_depth == {"last_survival": 0.2}
    assert config.model_kwargs == {"shortcut": "B"}
    uniform = [*base, "--config.stochastic_depth={'schedule': 'uniform'}"]
    config = sweep.combinations(uniform, axes[:1])[0][1]
    assert config.stochastic_depth == {"schedule": "uniform", "last_survival": 0.2}


def test_the_recipe_follows_a_grid_over_data_sets():
    base = [f"--config={ROOT}/configs/resnet20.py"]
    found = sweep.combinations(base, [("dataset", ["cifar10", "digits"])])
    assert [config.batch_size for _, config in found] == [128, 64]


BAD_INPUT = {
    "none": ([], r"Name a field, such as --grid batch_size"),
    "field": (["--grid", "config.epoch=1"], r"no field 'epoch': Did you mean"),
    "entry": (["--grid", "config.epochs.x=1"], r"epochs.x cannot be set"),
    "entry's name": (
        ["--grid", "config.stochastic_depth.survival=0.5"],
        r"Unknown field of stochastic_depth 'survival'; similar: last_survival",
    ),
    "empty": (["--grid", "config.epochs="], r"--grid must be a field and its values"),
    "type": (["--grid", "config.epochs=1,many"], r"config.epochs=many: invalid"),
    "type of an entry": (["--grid", f"{SD}=0.5,much"], r"in \(0, 1\], not 'much'"),
    "range": (["--grid", f"{SD}=0.5,1.5"], r"must be in \(0, 1\], not 1\.5"),
    "name": (["--grid", "config.model=resnet32,resnet21"], r"Unknown model 'resnet21'"),
    "same value": (["--grid", f"{SD}=0.5,.50"], r"survival has the value 0.5 twice"),
    "same field": (
        ["--grid", "config.epochs=1", "--grid", "config.epochs=2"],
        r"config.epochs is set twice: name it in one --grid",
    ),
    "also alone": (
        ["--config.epochs=1", "--grid", "config.epochs=2,3"],
        r"config.epochs is set twice",
    ),
    "seeds": (["--grid", "config.seed=0,1", "--seeds=2"], r"not by both"),
    "option": (["--grad=config.epochs=1"], r"Unknown option '--grad'; similar: --grid"),
}


@pytest.mark.parametrize("options, sentence", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_sentence_before_anything_is_trained(
    tmp_path, monkeypatch, capsys, options, sentence
):
    trained = fake.use(monkeypatch)
    argv = arguments(tmp_path / "bad", *options)
    assert in_process(monkeypatch, argv, sweep) == 2
    err = capsys.readouterr().err
    assert err.startswith("rn_jax: ") and err.count("\n") == 1
    assert re.search(sentence, err), err
    assert not trained and not (tmp_path / "bad").exists()


GRID = ["--grid", f"{SD}=0.2,1.0", "--grid", "config.epochs=3,5"]


def by_survival_and_epochs(config):
    return 100 * config.stochastic_depth["last_survival"] - config.epochs


def rows(workdir):
    return json.loads((workdir / "sweep.json").read_text())["rows"]


def cells(workdir, name="table.md"):
    """The body of the table in Markdown."""
    lines = (workdir / name).read_text().splitlines()
    body = [line for line in lines if line.startswith("| ")][2:]
    return [line.strip("| ").split(" | ") for line in body]


def test_every_combination_has_a_folder_and_is_trained_once(
    tmp_path, monkeypatch, capsys, saved_figures
):
    argv = arguments(tmp_path, *GRID)
    trained = fake.use(
        monkeypatch, by_survival_and_epochs, at=3, ends=KeyboardInterrupt()
    )
    assert in_process(monkeypatch, argv, sweep) == 75
    said = f"the same command with --workdir={tmp_path} resumes from there"
    printed = capsys.readouterr()
    assert said in printed.err
    # A run takes a minute here.
    assert [line for line in printed.out.splitlines() if line.startswith("[")] == [
        "[1 of 4] last_survival=0.2__epochs=3",
        "[2 of 4] last_survival=0.2__epochs=5 (about 03:00 left for all)",
        "[3 of 4] last_survival=1.0__epochs=3 (about 02:00 left for all)",
    ]
    states = [row["state"] for row in rows(tmp_path)]
    assert states == ["finished", "finished", "unfinished", "not begun"]
    assert [row[2] for row in cells(tmp_path)] == [
        *("17.00", "15.00", "unfinished", "not begun")
    ]

    assert in_process(monkeypatch, argv, sweep) == 0
    assert len(trained) == 5  # the third a second time
    assert {p.parent.name for p in tmp_path.glob("*/summary.json")} == {
        f"last_survival={p}__epochs={e}" for p in (0.2, 1.0) for e in (3, 5)
    }
    assert cells(tmp_path) == [
        [p, e, error, "1", e, "1,234,567", "60", "250"]
        for p, e, error in [
            *(("0.2", "3", "17.00"), ("0.2", "5", "15.00")),
            *(("1.0", "3", "97.00"), ("1.0", "5", "95.00")),
        ]
    ]
    assert rows(tmp_path)[3]["values"] == {
        "stochastic_depth.last_survival": 1.0,
        "epochs": 5,
    }
    drawn = [text.get_text() for text in saved_figures[-1].axes[0].texts]
    assert drawn == ["17.00", "97.00", "15.00", "95.00"]  # survival to the right
    assert (tmp_path / "sweep.png").exists()
    check_style(saved_figures[-1])
    caption = (tmp_path / "sweep.txt").read_text()
    assert all(option.partition("config.")[2] in caption for option in GRID[1::2])


def test_names_of_folders_are_short_and_tell_combinations_apart():
    rows = [{"a.stages": (1, 2), "b": "x"}, {"a.stages": [1, 2], "b": "x"}]
    assert sweep.folder_names(rows) == ["stages=1_2__b=x", "stages=1_2__b=x-2"]
    rows = [{"a.rate": 1e-05, "b.rate": -1}]
    assert sweep.folder_names(rows) == ["a.rate=1e-05__b.rate=-1"]


def test_a_sweep_of_an_earlier_version_goes_on(tmp_path, monkeypatch):
    trained = fake.use(monkeypatch, by_survival_and_epochs)
    argv = arguments(tmp_path, *GRID)
    assert in_process(monkeypatch, argv, sweep) == 0
    for folder in tmp_path.glob("*__*"):
        survival, epochs = folder.name.split("__")
        folder.rename(tmp_path / f"stochastic_depth.{survival},{epochs}")
    assert in_process(monkeypatch, argv, sweep) == 0
    assert len(trained) == 4
    assert rows(tmp_path)[0]["folder"] == "stochastic_depth.last_survival=0.2,epochs=3"


def test_a_signal_ends_the_sweep(tmp_path, monkeypatch):
    stopped = loop.StoppedError("Stopped by SIGTERM", "runs/a")
    trained = fake.use(monkeypatch, by_survival_and_epochs, at=2, ends=stopped)
    assert in_process(monkeypatch, arguments(tmp_path, *GRID), sweep) == 75
    assert len(trained) == 2


def test_a_combination_that_diverges_is_noted_and_the_next_begins(
    tmp_path, monkeypatch
):
    diverged = loop.NotFiniteError("The loss is not finite at step 3.")
    trained = fake.use(monkeypatch, by_survival_and_epochs, at=2, ends=diverged)
    assert in_process(monkeypatch, arguments(tmp_path, *GRID), sweep) == 0
    assert len(trained) == 4
    assert [row["state"] for row in rows(tmp_path)] == [
        *("finished", "diverged", "finished", "finished")
    ]
    assert "at step 3" in rows(tmp_path)[1]["reason"]


def test_a_folder_of_another_sweep_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, capsys
):
    fake.use(monkeypatch, by_survival_and_epochs)
    assert in_process(monkeypatch, arguments(tmp_path, *GRID), sweep) == 0
    trained = fake.use(monkeypatch, by_survival_and_epochs)
    grid = ["--grid", f"{SD}=0.7,1.0", *GRID[2:], "--config.batch_size=32"]
    assert in_process(monkeypatch, arguments(tmp_path, *grid), sweep) == 2
    assert "batch_size 64 there and 32 here" in capsys.readouterr().err
    assert not trained


def test_seeds_of_every_combination(tmp_path, monkeypatch):
    errors = {0: 10.0, 1: 12.0, 2: 17.0}
    fake.use(monkeypatch, lambda config: errors[config.seed])
    grid = ["--grid", "config.epochs=3,5", "--seeds=3", "--config.protocol=45k5k"]
    assert in_process(monkeypatch, arguments(tmp_path, *grid), sweep) == 0
    std = np.std([10, 12, 17], ddof=1)
    for row, line in zip(rows(tmp_path), cells(tmp_path), strict=True):
        assert row["n"] == 3
        assert row["test_error_percent"]["mean"] == 13
        assert row["test_error_percent"]["std"] == pytest.approx(std)
        assert line[1:4] == [f"13.00 ± {std:.2f}", f"14.00 ± {std:.2f}", "3"]
    assert (tmp_path / "epochs=3" / "seed2" / "summary.json").exists()
