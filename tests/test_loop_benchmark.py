# SPDX-License-Identifier: Apache-2.0
"""What benchmarks.loop measures."""

import dataclasses
import time

import pytest

from benchmarks import loop
from experiments.training import setup

WORKS, SLEEPS = 0.01, 0.02  # seconds of each step


@pytest.mark.parametrize("kept", [False, True])
def test_time_of_the_loops_thread_is_without_its_waits(kept, monkeypatch):
    steps = 30
    taken = []
    make = setup.build

    def build(*args, **kwargs):
        trainer = make(*args, **kwargs)

        def step(*given):
            taken.append(1)
            end = time.thread_time() + WORKS
            while time.thread_time() < end:
                pass
            time.sleep(SLEEPS)
            return trainer.train_step(*given)

        return dataclasses.replace(trainer, train_step=step)

    monkeypatch.setattr(setup, "build", build)
    config = loop.config_of(steps=steps, num_devices=1, data_on_device=kept)
    wall, cpu = loop.seconds_in_run(config)
    assert len(taken) == steps
    assert WORKS <= cpu < WORKS + SLEEPS / 2
    assert wall >= WORKS + SLEEPS
