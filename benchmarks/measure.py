# SPDX-License-Identifier: Apache-2.0
"""Timing for shared machines: alternating sides, medians, ratios and spread."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.training import environment

RESULTS = Path(__file__).parents[1] / "results"
_PACKAGES = ("jax", "jaxlib", "flax", "optax")


def alternate(
    sides: Mapping[str, Callable[[], None]], *, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Return the seconds of every call; sides alternate, so slow moments affect all.

    Args:
        sides: functions that return when their work is done.
        rounds: number of timed calls of each.
        warmup: number of calls of each before them.
    """
    for _ in range(warmup):
        for call in sides.values():
            call()
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def in_flight(
    enqueue: Callable[[], None],
    wait: Callable[[], None],
    *,
    steps: int,
    rounds: int,
    warmup: int = 3,
) -> list[float]:
    """Return the seconds of a step in each round, whose steps follow without a wait.

    Args:
        enqueue: takes a step, and returns before it is done.
        wait: returns when all steps are done.
        steps: number of steps of a round.
        rounds: number of rounds.
        warmup: number of steps before them.
    """
    for _ in range(warmup):
        enqueue()
    wait()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(steps):
            enqueue()
        wait()
        seconds.append((time.perf_counter() - start) / steps)
    return seconds


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Return the median of the pairwise ratios, and the quartiles."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": middle, "quartile_1": low, "quartile_3": high}


def command() -> str:
    """Return the command line of this benchmark."""
    module = sys.modules["__main__"].__spec__.name
    return " ".join(["python -m", module, *sys.argv[1:]])


def write(
    name: str, result: Mapping[str, object], *packages: str, folder: Path = RESULTS
) -> Path:
    """Write results/NAME.json, or that of another folder, with machine and versions."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "command": command(),
        "machine": environment.machine(),
        "versions": {
            name: version
            for name, version in environment.versions([*_PACKAGES, *packages]).items()
            if version is not None
        },
        **result,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return path
