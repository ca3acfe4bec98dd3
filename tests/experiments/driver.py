# SPDX-License-Identifier: Apache-2.0
"""The command as a user gives it, in this process or another, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny import TINY

import configs
from experiments import run
from experiments.config import make_config
from experiments.training import loop
from rn_jax.data import InMemory
from rn_jax.models import MODELS

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "jax"


def arguments(workdir, *options, config="resnet20", dataset="digits"):
    """argv of a small run: its options come after, and so win."""
    return [
        f"--config={ROOT}/configs/{config}.py:{dataset}",
        f"--workdir={workdir}",
        "--config.model=tiny",
        "--config.epochs=2",
        "--config.batch_size=240",
        "--config.num_devices=2",
        f"--config.compilation_cache={CACHE}",
        *options,
    ]


def in_process(monkeypatch, argv, command=run):
    """Exit code of the command with these arguments, called as by a program.

    A command that reads them from sys.argv would end this process on a signal.
    """
    monkeypatch.setattr(sys, "argv", ["command", *argv])
    return command.main(argv)


# A user's own network enters the table before the command runs. tensorboardX would
# import PyTorch where it is there, which takes two seconds.
WITH_TINY = f"""
import sys
sys.modules["torch"] = None
import experiments.training.events
del sys.modules["torch"]
sys.path.insert(0, {str(Path(__file__).parent)!r})
from tiny import TINY
from rn_jax import register_model
from experiments import run
register_model("tiny", TINY)
"""
PROGRAM = f"""{WITH_TINY}
sys.exit(run.main())
"""


def stop_after(monkeypatch, steps, feed=InMemory, method="train_batches"):
    """Makes the loop see a signal after that many steps of a kind of feed."""
    whole = getattr(feed, method)

    def until_signal(self, first_step, last_step):
        for i, batch in enumerate(whole(self, first_step, last_step), start=1):
            if i == steps:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    monkeypatch.setattr(feed, method, until_signal)


def crash_after(monkeypatch, steps, feed=InMemory):
    """Makes the loop fail in its work after that many steps of a kind of feed."""
    whole = feed.train_batches

    def train_batches(self, first_step, last_step):
        for i, batch in enumerate(whole(self, first_step, last_step), start=1):
            if i == steps:
                raise RuntimeError("a crash")
            yield batch

    monkeypatch.setattr(feed, "train_batches", train_batches)


def train_tiny(workdir):
    """A finished run of four blocks with stochastic depth, two epochs of digits."""
    fields = {
        **vars(make_config(configs.get_config("resnet20", "digits"))),
        "model": "tiny",
        "epochs": 2,
        "batch_size": 240,
        "num_devices": 2,
        "stochastic_depth": {"last_survival": 0.5},
        "compilation_cache": str(CACHE),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY)
        loop.train(make_config(fields), workdir)


def start(argv, **kwargs):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def lines(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def final_state(workdir):
    """The arrays of the newest checkpoint, by their path."""
    manager = ocp.CheckpointManager(workdir / "checkpoints")
    restored = manager.restore(
        manager.latest_step(),
        args=ocp.args.Composite(state=ocp.args.StandardRestore()),
    )
    manager.close()
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored.state)
    }


def assert_same_run(a, b):
    """Parameters, statistics, momentum, sums, counts and metrics, to the last bit."""
    state_a, state_b = final_state(a), final_state(b)
    assert state_a.keys() == state_b.keys()
    for name in state_a:
        np.testing.assert_array_equal(state_a[name], state_b[name], err_msg=name)
    assert lines(a) == lines(b)
