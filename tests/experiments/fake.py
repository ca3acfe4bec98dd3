# SPDX-License-Identifier: Apache-2.0
"""Runs that end at once, for commands that train many."""

from types import SimpleNamespace

from experiments.training import environment, loop
from experiments.training.summary import facts, summarize
from experiments.training.workdir import Workdir

EPOCH = {"kind": "epoch", "step": 100, "epoch": 1, "train_loss": 0.25}
EPOCH |= {"test_error_percent": 10.0}


def use(monkeypatch, error=lambda config: 10.0, *, at=None, ends=None):
    """Replace the loop's training by runs that end at once.

    Args:
        monkeypatch: pytest's.
        error: test error in percent by config.
        at: number of the run that does not end well, from 1.
        ends: the exception that ends it.

    Returns:
        The configs that were "trained", in order.
    """
    trained = []

    def train(config, path, *, command=None, **_):
        workdir = Workdir(path, config)
        if summary := workdir.summary():
            return summary
        trained.append(config)
        workdir.open()
        workdir.resume_at(0)
        steps = 10 * (config.epochs or 1)
        begun = min(steps, EPOCH["step"]) if len(trained) == at else steps
        workdir.log("metrics", {**EPOCH, "step": begun})
        workdir.close()
        trainer = SimpleNamespace(
            config=config,
            params=1234567,
            model=SimpleNamespace(num_blocks=54),
            devices=[SimpleNamespace(device_kind="cpu")],
            steps_per_epoch=10,
        )
        ended = facts(trainer, steps, 60.0, command)
        if len(trained) == at:
            if isinstance(ends, loop.NotFiniteError):
                workdir.note_divergence({**ended, "reason": str(ends)})
            raise ends
        last, best = {**EPOCH, "test_error_percent": error(config)}, None
        if config.protocol != "full":
            last["val_error_percent"] = error(config)
            best = {**last, "test_error_percent": error(config) + 1}
        summary = summarize(ended, last, best, 250.0)
        workdir.finish(summary)
        return summary

    machine = {"cpu": "a CPU", "cores": 2, "memory_gib": 4}
    monkeypatch.setattr(environment, "machine", lambda: machine)
    monkeypatch.setattr(environment, "versions", lambda packages: {"jax": "0"})
    monkeypatch.setattr(environment, "git_revision", lambda: "0123456789")
    monkeypatch.setattr(loop, "train", train)
    return trained
