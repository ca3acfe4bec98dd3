# SPDX-License-Identifier: Apache-2.0
"""The command as a user gives it, in this process or in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

from experiments import run

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
    """Exit code of the command with these arguments."""
    monkeypatch.setattr(sys, "argv", ["command", *argv])
    return command.main()


# A user's own network enters the table before the command runs.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from tiny import TINY
from rn_jax import register_model
register_model("tiny", TINY)
from experiments import run
sys.exit(run.main())
"""


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
