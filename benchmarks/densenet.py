# SPDX-License-Identifier: Apache-2.0
"""Memory of DenseNet's training step, naive and computed again, and its compile time.

    python -m benchmarks.densenet [--models=densenet100_24,densenet_bc190_40]

MiB of temporary memory on one device by `memory_analysis()`, and seconds to trace and
to compile. `--compile_only` names networks of which the compile time alone is wanted.
With --rounds the step is timed too, the two settings in turn.
"""

import argparse
import time

import jax

from benchmarks import measure
from benchmarks.training_step import Step


def compiled(step: Step) -> dict[str, float]:
    """Seconds to trace and to compile the step, and MiB of its temporary memory."""
    start = time.perf_counter()
    state = jax.eval_shape(step.create_state)
    lowered = step.step.lower(state, step.batch, step.key)
    traced = time.perf_counter()
    program = lowered.compile()
    return {
        "trace_seconds": traced - start,
        "compile_seconds": time.perf_counter() - traced,
        "temporary_mib": program.memory_analysis().temp_size_in_bytes / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="densenet100_24,densenet_bc190_40")
    parser.add_argument("--compile_only", default="densenet_bc250_24")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=0)
    options = parser.parse_args()
    size = {"batch_size": options.batch_size, "image_size": options.image_size}
    size["num_devices"] = 1
    table = {}
    for model in options.models.split(","):
        sides = {remat: Step(model, remat=remat, **size) for remat in ("none", "all")}
        row = table[model] = {remat: compiled(step) for remat, step in sides.items()}
        for remat, found in row.items():
            report(f"{model}, remat {remat}", found)
        if options.rounds:
            seconds = measure.alternate(sides, rounds=options.rounds)
            ratio = row["all / none"] = measure.ratio(seconds["all"], seconds["none"])
            print(f"{model}: a step takes {ratio['median']:.2f} times as long")
    for model in filter(None, options.compile_only.split(",")):
        table[model] = {"none": compiled(Step(model, **size))}
        report(model, table[model]["none"])
    result = {**vars(options), "results": table}
    print(measure.write(f"densenet_{jax.devices()[0].platform}", result))


def report(name: str, found: dict[str, float]) -> None:
    """Prints one line."""
    print(
        f"{name}: {found['temporary_mib']:.0f} MiB, trace "
        f"{found['trace_seconds']:.0f} s, compile {found['compile_seconds']:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
