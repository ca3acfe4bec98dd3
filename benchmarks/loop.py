# SPDX-License-Identifier: Apache-2.0
"""The time that the training loop adds to a step, with a tiny network.

    python -m benchmarks.loop [--steps=3000] [--rounds=5] [--num_devices=1]

A run of `experiments.run` trains one block of 4 channels on `digits`, and the same
compiled step is called on arrays that are on the device. The difference between their
times is the loop's own: batches, metrics, logs and clocks.
"""

import collections
import contextlib
import dataclasses
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import measure
from configs.default import Config
from experiments.cli import Parser
from experiments.config import load_config
from experiments.training import evaluation, loop, setup

MODEL = {"stage_sizes": (1,), "features": (4,)}


def seconds_in_run(config: Config) -> float:
    """Return the seconds of a step of a run, without evaluation and compilation."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        with contextlib.redirect_stdout(io.StringIO()):
            loop.train(config, str(path))
        lines = (path / "timing.jsonl").read_text("utf-8").splitlines()
    rate = json.loads(lines[-1])["images_per_second"]
    return config.batch_size / rate


def seconds_alone(trainer: setup.Trainer, steps: int) -> float:
    """Return the seconds of a step whose arrays are on the device already."""
    batch = next(trainer.batches(0, 1))
    state = jax.tree.map(lambda leaf: leaf.copy(), trainer.initial_state)
    in_flight: collections.deque = collections.deque()

    def take():
        nonlocal state
        state, sums = trainer.train_step(state, batch, trainer.key)
        in_flight.append(sums["loss"])
        if len(in_flight) > evaluation.IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())

    (seconds,) = measure.in_flight(
        take, lambda: jax.block_until_ready(state), steps=steps, rounds=1
    )
    return seconds


def measure_loop(*, steps: int = 3000, rounds: int = 5, num_devices: int = 1) -> Path:
    """Time a run's steps beside the bare step, and write results/loop_BACKEND.json.

    Args:
        steps: steps of each run.
        rounds: runs of each kind, which alternate with the bare step.
        num_devices: devices, or virtual devices of the CPU.

    Returns:
        The JSON file.
    """
    options = ["--config=configs/resnet20.py:digits", "--config.batch_size=8"]
    options.append(f"--config.num_devices={num_devices}")
    options += [f"--config.steps={steps}", f"--config.eval_every_steps={steps}"]
    _, config = load_config(options)
    config = dataclasses.replace(config, model_kwargs=MODEL, epochs=None)
    result: dict[str, Any] = {"steps": steps, "num_devices": num_devices}
    for kept in (False, True):
        config = dataclasses.replace(config, data_on_device=kept)
        trainer = setup.build(config)
        added, bare = [], []
        for _ in range(rounds):
            bare.append(seconds_alone(trainer, steps))
            added.append(seconds_in_run(config) - bare[-1])
        row = {
            "step_ms": 1e3 * statistics.median(bare),
            "loop_ms": 1e3 * statistics.median(added),
            "loop_ms_range": [1e3 * min(added), 1e3 * max(added)],
        }
        name = "data_on_device" if kept else "data_on_host"
        print(f"{name}: {row['step_ms']:.3f} ms alone, {row['loop_ms']:.3f} ms more")
        result[name] = row
    return measure.write(f"loop_{jax.default_backend()}", result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(__doc__, measure_loop)
    return parser.call(argv, interrupted="Interrupted; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
