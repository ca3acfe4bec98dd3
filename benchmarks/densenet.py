# SPDX-License-Identifier: Apache-2.0
"""Memory of DenseNet's training step with and without remat, and its compile time.

    python -m benchmarks.densenet [--models=densenet100_24,densenet_bc190_40]

MiB of temporary memory on one device by `memory_analysis()`, with `remat` "none" and
"all". XLA plans memory before LLVM sees the program, so LLVM does not optimise here.
`--compile_only` names networks whose fully optimised step is traced and compiled.
Every program has a process of its own, which ends after `--limit` seconds; the result
is updated after each.
"""

import argparse
import multiprocessing
import time

import jax

from benchmarks import measure
from benchmarks.training_step import Step

# Disables optimisation in XLA's CPU compiler.
UNOPTIMISED = {"xla_backend_optimization_level": 0}


def compiled(model: str, *, optimised: bool, **settings) -> dict[str, float]:
    """Return the seconds to trace and compile the step, and MiB of its memory."""
    step = Step(model, num_devices=1, **settings)
    start = time.perf_counter()
    state = jax.eval_shape(step.create_state)
    lowered = step.step.lower(state, step.batch, step.key)
    traced = time.perf_counter()
    on_cpu = jax.default_backend() == "cpu"
    program = lowered.compile(UNOPTIMISED if on_cpu and not optimised else None)
    return {
        "optimised": optimised or not on_cpu,
        "trace_seconds": traced - start,
        "compile_seconds": time.perf_counter() - traced,
        "temporary_mib": program.memory_analysis().temp_size_in_bytes / 2**20,
    }


def within(limit: float, model: str, **settings) -> dict[str, float]:
    """Run `compiled` in a process; `stopped_after_seconds` is set if it is too slow."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply_async(compiled, (model,), settings).get(limit)
        except multiprocessing.TimeoutError:
            return {"optimised": settings["optimised"], "stopped_after_seconds": limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="densenet100_24,densenet_bc190_40")
    parser.add_argument("--compile_only", default="densenet_bc250_24")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--limit", type=float, default=1200)
    options = parser.parse_args()
    programs = [
        (model, {"remat": remat, "optimised": False})
        for model in filter(None, options.models.split(","))
        for remat in ("none", "all")
    ] + [
        (model, {"remat": "none", "optimised": True})
        for model in filter(None, options.compile_only.split(","))
    ]
    size = {"batch_size": options.batch_size, "image_size": options.image_size}
    results = []
    for model, settings in programs:
        found = within(options.limit, model, **settings, **size)
        results.append({"model": model, **settings, **found})
        print(results[-1], flush=True)
        path = measure.write(
            f"densenet_{jax.default_backend()}", {**vars(options), "results": results}
        )
    print(path)


if __name__ == "__main__":
    main()
