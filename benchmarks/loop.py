# SPDX-License-Identifier: Apache-2.0
"""The time that the training loop adds to a step, with a tiny network.

    python -m benchmarks.loop [--steps=3000] [--rounds=5] [--num_devices=1]

A run of `experiments.run` trains one block of 4 channels on `digits`, and the same
compiled step is called on arrays that are on the device. The difference between their
times is what the loop adds: batches, metrics, logs and clocks. Since the host works
while the device computes, the CPU time of the loop's thread is given too.
"""

import collections
import contextlib
import dataclasses
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from benchmarks import measure
from configs.default import Config
from experiments.cli import Parser
from experiments.config import load_config
from experiments.training import evaluation, loop, setup

MODEL = {"stage_sizes": (1,), "features": (4,)}


def config_of(*, steps: int, num_devices: int, data_on_device: bool) -> Config:
    """Return the config of a run of that many steps of the tiny network."""
    options = ["--config=configs/resnet20.py:digits", "--config.batch_size=8"]
    options += [f"--config.steps={steps}", f"--config.eval_every_steps={steps}"]
    options.append(f"--config.num_devices={num_devices}")
    options.append(f"--config.data_on_device={data_on_device}")
    _, config = load_config(options)
    return dataclasses.replace(config, model_kwargs=MODEL, epochs=None)


def seconds_in_run(config: Config) -> tuple[float, float]:
    """Return the seconds of a step of a run, without evaluation and compilation.

    Returns:
        The wall time, and the CPU time of the loop's thread, which includes the calls
        of the compiled step but no batches that other threads make.
    """
    called = []  # the thread's CPU time before each step

    def build(*args, **kwargs):
        trainer = setup.build(*args, **kwargs)

        def step(*args):
            called.append(time.thread_time())
            return trainer.train_step(*args)

        return dataclasses.replace(trainer, train_step=step)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run")
        with (
            mock.patch.object(loop, "build", build),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            loop.train(config, str(path))
        lines = (path / "timing.jsonl").read_text("utf-8").splitlines()
    rate = json.loads(lines[-1])["images_per_second"]
    first, last = called[1], called[-1]  # the step is compiled before the second
    return config.batch_size / rate, (last - first) / (len(called) - 2)


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
    result: dict[str, Any] = {"steps": steps, "num_devices": num_devices}
    for kept in (False, True):
        config = config_of(steps=steps, num_devices=num_devices, data_on_device=kept)
        trainer = setup.build(config)
        added, bare, host = [], [], []
        for _ in range(rounds):
            bare.append(seconds_alone(trainer, steps))
            wall, cpu = seconds_in_run(config)
            added.append(wall - bare[-1])
            host.append(cpu)
        row = {
            "step_ms": 1e3 * statistics.median(bare),
            "loop_ms": 1e3 * statistics.median(added),
            "loop_ms_range": [1e3 * min(added), 1e3 * max(added)],
            "host_ms": 1e3 * statistics.median(host),
            "host_ms_range": [1e3 * min(host), 1e3 * max(host)],
        }
        name = "data_on_device" if kept else "data_on_host"
        print(
            f"{name}: {row['step_ms']:.3f} ms alone, {row['loop_ms']:.3f} ms more; "
            f"{row['host_ms']:.3f} ms of the loop's thread"
        )
        result[name] = row
    return measure.write(f"loop_{jax.default_backend()}", result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(__doc__, measure_loop)
    return parser.call(argv, interrupted="Interrupted; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
