# SPDX-License-Identifier: Apache-2.0
"""Seconds to trace and compile a training step, and the memory it needs, by depth.

    python -m benchmarks.compile_time [--models=resnet20,resnet110,resnet1202]

Every network is compiled in a process of its own, without the cache on disk. The
networks alternate.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time

import jax
from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.training_step import Step


def compile_once(model: str, batch_size: int, image_size: int) -> dict[str, float]:
    """Return the seconds of the first step, which is compiled, and of the next one."""
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


def temporary_mib(model: str, batch_size: int, image_size: int) -> dict[str, float]:
    """Return MiB of the step's temporary memory on each device, by `remat`."""
    found = {}
    for remat in ("none", "cheap", "all"):
        step = Step(model, batch_size=batch_size, image_size=image_size, remat=remat)
        program = step.step.lower(step.state, step.batch, step.key).compile()
        found[remat] = program.memory_analysis().temp_size_in_bytes / 2**20
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
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
            "temporary_mib_per_device_by_remat": temporary_mib(
                model, options.batch_size, options.image_size
            ),
            f"ratio_to_{first}": measure.ratio(total, base),
        }
        row = table[model]
        print(
            f"{model}: trace {row['trace_seconds']:.2f} s, compile "
            f"{row['compile_seconds']:.2f} s, in total "
            f"{row[f'ratio_to_{first}']['median']:.2f} times {first}; MiB by remat: "
            + ", ".join(
                f"{name} {mib:.0f}"
                for name, mib in row["temporary_mib_per_device_by_remat"].items()
            )
        )
    result = {**vars(options), "results": table}
    path = measure.write(f"compile_time_{jax.devices()[0].platform}", result)
    _plot(table, path.with_suffix(".png"))
    print(path)


def _plot(table, path):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    depths = [int(re.sub(r"\D", "", model)) for model in table]
    for kind, style in (("total", "ko-"), ("trace", "k^--")):
        seconds = [row[f"{kind}_seconds"] for row in table.values()]
        label = {"total": "trace and compile", "trace": "trace"}[kind]
        axes.plot(depths, seconds, style, label=label)
    axes.set(
        title="Compile time of a training step by depth (blocks in a scan)",
        xlabel="layers",
        ylabel="seconds",
        xscale="log",
        ylim=(0, None),
    )
    axes.set_xticks(depths, depths)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
