# SPDX-License-Identifier: Apache-2.0
"""How long a run and its steps take, the memory they need, and a trace of some steps.

Clock and memory readings go to timing.jsonl alone.
"""

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from rn_jax.data.batches import Batch

_PERCENTILES = {"step_seconds_p50": 50, "step_seconds_p90": 90, "step_seconds_p99": 99}


class Clock:
    """Times a whole run, training without evaluation, and single steps.

    Args:
        batch_size: images of a step.

    Attributes:
        totals: seconds of the run up to the last reading, and seconds and images of
            training alone; a resumed run continues those of its checkpoint.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.totals: dict[str, float] = {
            "wall_seconds": 0.0,
            "timed_seconds": 0.0,
            "timed_images": 0,
        }
        self._wall_since = time.perf_counter()
        self._training_since: float | None = None
        self._images = 0
        self._clear_steps()

    def _clear_steps(self):
        self._steps, self._waited, self._last = [], 0.0, None

    def start(self, state: Any) -> None:
        """Time training from now on, unless it is timed already.

        The first step, which is compiled, is left out by a call after it.
        """
        if self._training_since is not None:
            return
        jax.block_until_ready(state)
        self._training_since = self._last = time.perf_counter()
        self._images = 0

    def stop(self, state: Any) -> None:
        """Stop timing training, for an evaluation or a checkpoint."""
        if self._training_since is not None:
            jax.block_until_ready(state)
            self.totals["timed_seconds"] += time.perf_counter() - self._training_since
            self.totals["timed_images"] += self._images
            self._training_since = None

    def next(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch, and time the wait for it."""
        started = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - started
        self._images += self._batch_size
        return batch

    def step_ended(self) -> None:
        """Time a step, from the end of the one before."""
        if self._last is not None:
            before, self._last = self._last, time.perf_counter()
            self._steps.append(self._last - before)

    def wall_seconds(self) -> float:
        """Return the seconds of the run up to now, without interruptions."""
        return self.totals["wall_seconds"] + time.perf_counter() - self._wall_since

    def images_per_second(self) -> float | None:
        """Return the mean throughput of training; None before it was timed."""
        seconds = self.totals["timed_seconds"]
        return self.totals["timed_images"] / seconds if seconds else None

    def read(self) -> dict[str, float | None]:
        """Return a line of timing.jsonl, with the steps since the last reading."""
        self.totals["wall_seconds"] = self.wall_seconds()
        self._wall_since = time.perf_counter()
        percentiles: dict[str, float | None] = dict.fromkeys(_PERCENTILES)
        if self._steps:
            values = np.percentile(self._steps, list(_PERCENTILES.values()))
            percentiles = dict(zip(_PERCENTILES, values.tolist(), strict=True))
        line = {
            "wall_seconds": self.totals["wall_seconds"],
            "images_per_second": self.images_per_second(),
            "peak_memory_mib": _peak_memory_mib(),
            **percentiles,
            "data_wait_seconds": self._waited,
        }
        self._clear_steps()
        return line


def _peak_memory_mib():
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**20
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**20 if sys.platform == "darwin" else 2**10)


class Profile:
    """A trace of some steps, for TensorBoard or Perfetto.

    Args:
        folder: where the trace is written.
        steps: number of steps to trace; 0 for none. The first two steps, which
            compile, are left out.
    """

    _SKIPPED = 2

    def __init__(self, folder: epath.PathLike, steps: int):
        self._folder, self._steps = folder, steps
        self._seen, self._running = 0, False

    def after_step(self, state: Any) -> None:
        """Begin or end the trace if it is time; `state` is what the step returned."""
        self._seen += 1
        if self._steps and self._seen == self._SKIPPED:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True
        elif self._seen == self._SKIPPED + self._steps:
            self.close(state)

    def close(self, state: Any) -> None:
        """End the trace if it is running."""
        if self._running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._running = False
            print(f"Trace of {self._seen - self._SKIPPED} steps: {self._folder}")
