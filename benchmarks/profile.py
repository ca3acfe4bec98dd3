# SPDX-License-Identifier: Apache-2.0
"""The time of a training step by kind of work.

    python -m benchmarks.profile [--model=resnet110] [--open=K]

Times are means over the devices from JAX's profiler, beside the wall time of the same
step. With --open=K, K evenly spread blocks are open.
"""

import argparse
import collections
import glob
import re
import statistics
import tempfile
import time

import jax

import rn_jax
from benchmarks import measure
from benchmarks.skip import exactly_open
from benchmarks.training_step import Step

# Patterns for an operation's name and its source; the first match counts.
KINDS = {
    "waiting for another device": r"Wait: pending|Rendezvous",
    "collectives": r"all[-_]reduce|all[-_]gather|psum|pmean",
    "convolution": r"conv_general_dilated|convolution|cudnn|implicit_gemm",
    "kept arrays, zeroed": r"wrapped_broadcast|/broadcast\.\d+$",
    "kept arrays, written and read": r"dynamic_(update_)?(slice|index)|dynamic-",
    "BatchNorm": r"/(stem_|final_)?bn(\d|_after)?/",
    "activation and sum": r"select_n|relu|/max|add_any|/add$",
}
REST = "other"


def operations(hlo: str) -> dict[str, str]:
    """Return name -> source of every operation of a compiled program."""
    found = {}
    for line in hlo.splitlines():
        if name := re.match(r"\s*(?:ROOT )?%([\w.\-]+) = ", line):
            source = re.search(r'op_name="([^"]*)"', line)
            found[name[1]] = source[1] if source else ""
    return found


def kind_of(name: str, sources: dict[str, str]) -> str:
    """Return the kind, of `KINDS`, of an event of the profiler."""
    text = f"{name} {sources.get(name, '')}"
    return next((kind for kind, p in KINDS.items() if re.search(p, text)), REST)


def self_times(events) -> collections.Counter:
    """Return seconds by event name on one thread, without those of nested events."""
    spans = sorted(
        ((e.start_ns, e.start_ns + e.duration_ns, e.name) for e in events),
        key=lambda span: (span[0], -span[1]),
    )
    seconds, open_spans = collections.Counter(), []
    for start, end, name in spans:
        while open_spans and open_spans[-1][0] <= start:
            open_spans.pop()
        if open_spans:
            seconds[open_spans[-1][1]] -= (end - start) / 1e9
        seconds[name] += (end - start) / 1e9
        open_spans.append((end, name))
    return seconds


def profile(step: Step, steps: int) -> tuple[dict[str, float], float]:
    """Return seconds per step and device by kind of work, and the wall time."""
    compiled = step.step.lower(step.state, step.batch, step.key).compile()
    sources = operations(compiled.as_text())
    for _ in range(3):
        step()
    clock = []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                start = time.perf_counter()
                step()
                clock.append(time.perf_counter() - start)
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
        found = collections.Counter()
        for plane in data.planes:
            for line in plane.lines:
                times = self_times(line.events)
                if not any(name in sources for name in times):
                    continue  # not a thread that computes
                for name, seconds in times.items():
                    if name in sources or kind_of(name, {}) != REST:
                        found[kind_of(name, sources)] += seconds
    share = steps * len(step.devices)
    return {kind: found[kind] / share for kind in found}, statistics.median(clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="resnet110")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument(
        "--open", type=int, help="number of open blocks; default: no gates"
    )
    parser.add_argument("--remat", choices=("none", "cheap", "all"), default="cheap")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()

    size = {"batch_size": options.batch_size, "image_size": options.image_size}
    depth = None
    if options.open is not None:
        num_blocks = rn_jax.create_model(options.model).num_blocks
        depth = exactly_open(options.open, num_blocks)
    step = Step(options.model, depth=depth, remat=options.remat, **size)
    kinds, clock = profile(step, options.steps)
    untraced = "without an event (convolutions of Eigen)" if _is_cpu() else "idle"
    kinds[untraced] = max(0.0, clock - sum(kinds.values()))
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"{kind:42} {seconds:.3f} s  {100 * seconds / clock:3.0f} %")
    print(f"{'on the clock':42} {clock:.3f} s")
    name = f"profile_{options.model}_{jax.devices()[0].platform}"
    if depth is not None:
        name += f"_{options.open}_open"
    result = {**vars(options), "seconds_by_kind": kinds, "seconds_on_the_clock": clock}
    print(measure.write(name, result))


def _is_cpu() -> bool:
    return jax.devices()[0].platform == "cpu"


if __name__ == "__main__":
    main()
