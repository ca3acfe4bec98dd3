# SPDX-License-Identifier: Apache-2.0
"""What a run measures of itself: how long its steps take, and a trace of some."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

_PERCENTILES = {"step_seconds_p50": 50, "step_seconds_p90": 90, "step_seconds_p99": 99}


class Pace:
    """Seconds that steps take, and wait for data, since the last readings."""

    def __init__(self):
        self._begin()

    def _begin(self):
        self._steps, self._waited, self._last = [], 0.0, None

    def start(self) -> None:
        """Training goes on after a pause, or after the first step, which compiled."""
        self._last = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for the next batch."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def step_ended(self) -> None:
        """A step has ended; it counts if `start` came before."""
        if self._last is not None:
            before, self._last = self._last, time.perf_counter()
            self._steps.append(self._last - before)

    def readings(self) -> dict[str, float | None]:
        """Percentiles over the steps, None without any, and the wait for data."""
        found = dict.fromkeys(_PERCENTILES)
        if self._steps:
            values = np.percentile(self._steps, list(_PERCENTILES.values()))
            found = dict(zip(_PERCENTILES, values.tolist(), strict=True))
        found["data_wait_seconds"] = self._waited
        self._begin()
        return found


class Profile:
    """A trace of some steps, for TensorBoard or Perfetto.

    Args:
        folder: to which it is written.
        steps: how many; 0 for none. The first two, which compile, are left out.
    """

    _SKIPPED = 2

    def __init__(self, folder: epath.PathLike, steps: int):
        self._folder, self._steps = folder, steps
        self._seen, self._running = 0, False

    def after_step(self, state: Any) -> None:
        """Begins or ends the trace where it is time; `state` is what the step gave."""
        self._seen += 1
        if self._steps and self._seen == self._SKIPPED:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True
        elif self._seen == self._SKIPPED + self._steps:
            self.close(state)

    def close(self, state: Any) -> None:
        """Ends the trace, if there is one that has not ended."""
        if self._running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False
            print(f"Trace of {self._seen - self._SKIPPED} steps: {self._folder}")
