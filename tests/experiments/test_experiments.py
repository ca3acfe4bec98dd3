# SPDX-License-Identifier: Apache-2.0
"""The package of the commands: modules under their old names."""

import importlib

import pytest

MOVED = {
    "command": "cli",
    "loop": "training.loop",
    "setup": "training.setup",
    "tables": "papers.tables",
}


@pytest.mark.parametrize("old, new", MOVED.items())
def test_modules_have_their_old_names_too(old, new):
    module = importlib.import_module(f"experiments.{new}")
    assert importlib.import_module(f"experiments.{old}") is module
    assert getattr(importlib.import_module("experiments"), old) is module


def test_old_names_of_functions():
    from experiments import seeds, subject
    from experiments.training import many_runs, trained

    assert seeds.train is many_runs.train_seeds
    assert subject.finished is trained.finished


def test_other_modules_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"experiments\.lop"):
        importlib.import_module("experiments.lop")
