# SPDX-License-Identifier: Apache-2.0
"""Seconds to trace and compile a training step, by depth.

    python -m benchmarks.compile_time [--models=resnet20,resnet110,resnet1202]

Every network is compiled in a process of its own, without the cache on disk; the
networks alternate over the rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import jax

from benchmarks import measure
from benchmarks.training_step import Step


def compile_once(model: str, batch_size: int, image_size: int) -> dict[str, float]:
    """Seconds of the first step, which traces and compiles, and of the next ones."""
    durations = {"trace": 0.0, "compile": 0.0}

    def listen(event, seconds, **kwargs):
        if event.endswith("backend_compile_duration"):
            durations["compile"] += seconds
        elif event.endswith(("jaxpr_trace_duration", "to_mlir_module_duration")):
            durations["trace"] += seconds

    step = Step(model, batch_size=batch_size, image_size=image_size)
    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    durations["first_step"] = first
    start = time.perf_counter()
    step()
    durations["step"] = time.perf_counter() - start
    return durations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet20,resnet110,resnet1202")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        result = compile_once(options.once, options.batch_size, options.image_size)
        print(json.dumps(result))
        return

    seconds = {model: [] for model in options.models.split(",")}
    command = [sys.executable, "-m", "benchmarks.compile_time", *sys.argv[1:]]
    for _ in range(options.rounds):
        for model, found in seconds.items():
            output = subprocess.run(
                [*command, f"--once={model}"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            found.append(json.loads(output.splitlines()[-1]))
    first = next(iter(seconds))
    table = {}
    for model, found in seconds.items():
        total = [f["trace"] + f["compile"] for f in found]
        base = [f["trace"] + f["compile"] for f in seconds[first]]
        table[model] = {
            "trace_seconds": statistics.median(f["trace"] for f in found),
            "compile_seconds": statistics.median(f["compile"] for f in found),
            "total_seconds": statistics.median(total),
            "step_seconds": statistics.median(f["step"] for f in found),
            f"ratio_to_{first}": measure.ratio(total, base),
        }
        row = table[model]
        print(
            f"{model}: trace {row['trace_seconds']:.2f} s, compile "
            f"{row['compile_seconds']:.2f} s, together "
            f"{row[f'ratio_to_{first}']['median']:.2f} times {first}"
        )
    path = measure.write("compile_time", {"rounds": options.rounds, "models": table})
    print(path)


if __name__ == "__main__":
    main()
