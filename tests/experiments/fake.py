# SPDX-License-Identifier: Apache-2.0
"""Runs that end at once, for what many runs are turned into."""

from experiments.training import loop
from experiments.training.workdir import Workdir

EPOCH = {"kind": "epoch", "step": 100, "epoch": 1, "train_loss": 0.25}
EPOCH |= {"test_error_percent": 10.0}


def use(monkeypatch, error=lambda config: 10.0, *, at=None, ends=None):
    """Puts a run without training in the place of the loop's.

    Args:
        monkeypatch: pytest's.
        error: test error in percent by config.
        at: number of the run that does not end well, from 1.
        ends: the exception by which it ends.

    Returns:
        The configs that were "trained", in order.
    """
    trained = []

    def train(config, path, *, command=None, resumed_by=None):
        workdir = Workdir(path, config)
        if summary := workdir.summary():
            return summary
        trained.append(config)
        workdir.open()
        workdir.resume_at(0)
        workdir.log("metrics", EPOCH)
        workdir.close()
        facts = {
            "params": 1234567,
            "epochs": config.epochs,
            "steps": 10 * (config.epochs or 1),
            "devices": "1 x cpu",
            "versions": {"jax": "0"},
            "git_revision": "0123456789",
            "command": command,
            "wall_seconds": 60.0,
        }
        if len(trained) == at:
            if isinstance(ends, loop.NotFiniteError):
                workdir.note_divergence({**facts, "reason": str(ends)})
            raise ends
        summary = {
            **facts,
            "test_error_percent": error(config),
            "test_error_at_best_val_percent": (
                None if config.protocol == "full" else error(config) + 1
            ),
            "train_loss": 0.25,
            "images_per_second": 250.0,
        }
        workdir.finish(summary)
        return summary

    monkeypatch.setattr(loop, "train", train)
    return trained
