# SPDX-License-Identifier: Apache-2.0
"""The clock of a run, by seconds that are known."""

import itertools

from experiments.training import timing


def test_clock(monkeypatch):
    """One second passes between any two readings of the time."""
    seconds = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(seconds)))
    clock, batches = timing.Clock(batch_size=10), iter("abcd")
    assert clock.images_per_second() is None
    assert clock.next(batches) == "a"  # the first step, which is compiled
    clock.start(())
    clock.start(())  # it is running
    for batch in "bcd":
        assert clock.next(batches) == batch
        clock.step_ended()
    clock.stop(())
    # From `start` to `stop`: three times a wait of two readings and the end of a step.
    assert clock.totals["timed_seconds"] == 10
    assert clock.totals["timed_images"] == 30
    line = clock.read()
    assert line["images_per_second"] == 3
    assert line["data_wait_seconds"] == 4
    assert line["step_seconds_p50"] == line["step_seconds_p99"] == 3
    assert clock.totals["wall_seconds"] == line["wall_seconds"] > 13
    assert clock.read()["step_seconds_p50"] is None  # none since then
