# SPDX-License-Identifier: Apache-2.0
"""Measure training steps on this machine's GPU, the most important ones first.

python -m benchmarks.gpu --budget=SECONDS [--workdir=DIR] [--rehearse]

Steps are compiled in parallel, in processes of their own, for at most 3/5 of the
budget; cuDNN's algorithms are then chosen on a busy GPU, on all sides. After that each
is timed alone: images are on the device, and steps follow each other without a wait.
Measurements that do not come in time are rows that say so.
"""

import argparse
import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from benchmarks import gpu_steps as steps
from benchmarks import measure
from benchmarks.gpu_steps import BEST, Form, Scale, Workload
from benchmarks.turns import Prepare, Row, serve, take_turns
from experiments import cli, markdown
from experiments.training import loop
from experiments.training.network import make_model
from rn_jax import InputError, parallel

PREPARING = 0.6  # share of the budget
RESERVE = 5.0  # seconds of the budget for the end of the children
TURN_SECONDS = 90.0
TOLERANCE = 1e-5  # relative difference of a step with CUDA graphs
OF_CONSTANT_DEPTH = 0.78  # goal of ResNet-110 with p_L = 0.5
OF_BARE_STEP = 1.15  # goal of ResNet-20's real run


_RESNET110 = partial(Workload, "resnet110_he2015", "resnet110", batch_size=128)
FULL = Scale(
    (
        _RESNET110(
            dtype="float32", of_compiled=0.75, of_constant_depth=OF_CONSTANT_DEPTH
        ),
        _RESNET110(
            dtype="bfloat16", of_compiled=0.6, of_constant_depth=OF_CONSTANT_DEPTH
        ),
        Workload(
            *("resnet50", "resnet50", "bfloat16", 256, 224),
            of_compiled=0.8,
            images_per_second=7000,
        ),
    ),
    Workload("resnet20", "resnet20", "float32", 128),
    steps=20,
    rounds=5,
    run_steps=3000,
)
_SMALL = Workload("resnet20", "resnet20", "float32", 8, stage_sizes=(2,))
REHEARSAL = Scale(
    (_SMALL, _SMALL._replace(dtype="bfloat16", images_per_second=1)),
    _SMALL,
    steps=2,
    rounds=2,
    run_steps=20,
)


class Measurement(NamedTuple):
    """A row of the table.

    Attributes:
        name: unique.
        child: the process that takes it.
        prepare: the function for `serve`.
    """

    name: str
    child: str
    prepare: Prepare


def name_of_step(workload: Workload, last_survival: float, form: Form = BEST) -> str:
    """Return the name of a step of ours, by default in its best form."""
    return f"{workload.name}, p_L = {last_survival:g}, {form.name}"


def name_of_peer(
    workload: Workload, compiled: bool = True, last_survival: float | None = None
) -> str:
    """Return the name of a step of PyTorch, with DropPath if `last_survival` is p_L."""
    drop = "" if last_survival is None else f", DropPath to {1 - last_survival:g}"
    return f"{workload.name}, torch{'.compile, graphs' if compiled else ' eager'}{drop}"


def name_of_run(workload: Workload, *, bare: bool = False) -> str:
    """Return the name of the real run, or of its bare step."""
    return f"{workload.name}, {'bare step' if bare else 'real run'}"


def plan(scale: Scale, folder: Path) -> list[Measurement]:
    """Return what to measure, the most important first.

    Args:
        scale: how much.
        folder: for the trace and, until the end, the real run.
    """
    first, found = scale.workloads[0], []

    def add(name, child, prepare, *arguments):
        found.append(Measurement(name, child, partial(prepare, *arguments)))

    def child_of(workload, form):
        return f"{workload.name}_{form.name}".replace(", ", "_").replace(" ", "_")

    def add_steps(workload, form=BEST):
        for p in (1.0, 0.5):
            name, child = name_of_step(workload, p, form), child_of(workload, form)
            add(name, child, steps.prepare_step, workload, scale, p, form)

    def add_peer(workload, compiled, p=None):
        mode = "reduce-overhead" if compiled else None
        child = f"{workload.model}_{workload.dtype}_torch_{mode or 'eager'}"
        child += "" if p is None else "_DropPath"
        name = name_of_peer(workload, compiled, p)
        add(name, child, steps.prepare_torch, workload, scale, mode, p)

    for p in (1.0, 0.5):
        name = f"{first.name}, p_L = {p:g}, difference by graphs"
        add(name, f"equality_{p:g}", steps.prepare_equality, first, p)
    for workload in scale.workloads:
        add_steps(workload)
        add_peer(workload, True)
    for workload in scale.workloads:
        add_peer(workload, False)
        if workload.image_size == 32:  # torchvision's networks have no DropPath
            add_peer(workload, True, 0.5)
            add_peer(workload, False, 0.5)
        for form in (Form(graphs=False), Form(in_line=False), Form(False, False)):
            add_steps(workload, form)
    blocks = make_model(steps.config_of(first)).num_blocks
    for number in sorted({math.ceil(blocks * share / 4) for share in range(5)}):
        name = f"{first.name}, {number} of {blocks} blocks open"
        add(name, "skip", steps.prepare_open, first, scale, number)
    run = scale.run
    add(name_of_run(run, bare=True), "run", steps.prepare_bare, run, scale)
    add(name_of_run(run), "run", steps.prepare_run, run, scale, folder / "run")
    name = f"{first.name}, p_L = 0.5, trace"
    add(name, child_of(first, BEST), steps.prepare_trace, first, folder)
    return found


# --- Results --------------------------------------------------------------------------


def compare(scale: Scale, rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Return the ratios of the rows that are there, beside their goals.

    Returns:
        Dicts with name, value, goal (the largest value; None: there is none) and
        reached (None without a goal).
    """
    found = []

    def add(name, value, goal):
        reached = None if goal is None else bool(value <= goal)
        found.append({"name": name, "value": value, "goal": goal, "reached": reached})

    def add_ratio(name, over, under, goal):
        if "ms" in rows.get(over, {}) and "ms" in rows.get(under, {}):
            add(name, rows[over]["ms"] / rows[under]["ms"], goal)

    for name, row in rows.items():
        if "difference" in row:
            add(name, row["difference"], TOLERANCE)
    for w in scale.workloads:
        best, half = name_of_step(w, 1.0), name_of_step(w, 0.5)
        for compiled, peer, goal in (
            (True, "torch.compile", w.of_compiled),
            (False, "torch eager", None),
        ):
            step, dropping = (name_of_peer(w, compiled, p) for p in (None, 0.5))
            add_ratio(f"{w.name}, ours / {peer}", best, step, goal)
            add_ratio(f"{w.name}, p_L = 0.5 / {peer}, DropPath", half, dropping, None)
        name = f"{w.name}, p_L = 0.5 / constant depth"
        add_ratio(name, half, best, w.of_constant_depth)
        rate = rows.get(best, {}).get("images_per_second")
        if w.images_per_second and rate:
            name = f"{w.name}, {w.images_per_second:,} images/s / ours"
            add(name, w.images_per_second / rate, 1.0)
    bare, run = name_of_run(scale.run, bare=True), name_of_run(scale.run)
    add_ratio(f"{run} / bare step", run, bare, OF_BARE_STEP)
    return found


def skip_line(rows: Mapping[str, Row]) -> dict[str, float] | None:
    """Return the line through the times by open blocks; None for less than two."""
    times = {
        row["open_blocks"]: row["ms"] for row in rows.values() if "open_blocks" in row
    }
    if len(times) < 2:
        return None
    slope, floor = np.polyfit(list(times), list(times.values()), 1)
    return {"ms_with_none_open": float(floor), "ms_of_an_open_block": float(slope)}


HEAD = ("measurement", "ms", "images/s", "prepared, s")


def cells(name: str, row: Row) -> list[str]:
    """Return the cells of a row; its error or note is beside its name."""
    if note := row.get("error") or row.get("note"):
        name += f": {note}"
    formats = {"ms": ".2f", "images_per_second": ",.0f", "prepare_seconds": ".0f"}
    return [name, *(format(row[k], f) if k in row else "" for k, f in formats.items())]


def table_of_ratios(ratios: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of `compare`."""
    words = {None: "", True: "yes", False: "no"}
    lines = []
    for r in ratios:
        goal = "" if r["goal"] is None else f"{r['goal']:g}"
        lines.append([r["name"], words[r["reached"]], f"{r['value']:.3g}", goal])
    return markdown.table(["ratio", "reached", "value", "at most"], lines, words=2)


def gpu(
    *,
    budget: int,
    workdir: cli.Path | None = None,
    rehearse: bool = False,
    child: Annotated[str | None, {"help": argparse.SUPPRESS}] = None,
) -> None:
    """Measure, print tables, and write gpu_CARD.json after each row.

    Args:
        budget: seconds after which the command has ended.
        workdir: empty folder for the trace, for what each process prints, and for the
            JSON, which is also written to results/; None: a new one under runs/.
        rehearse: measure small steps on the CPU, those of torch.compile without it,
            and write to the folder alone.
        child: the process of the plan that this is.

    Raises:
        InputError: no GPU, a budget that is too small, or a folder that is not empty.
    """
    start = time.monotonic()
    cli.at_least(30, budget=budget)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # processes share the GPU
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "4"  # each of them
    if rehearse:
        os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        os.environ |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # to compile soon
        os.environ |= {"TORCH_COMPILE_DISABLE": "1"}
        jax.config.update("jax_platforms", "cpu")
    scale = REHEARSAL if rehearse else FULL
    folder = Path(workdir or cli.new_workdir("gpu"))
    measurements = plan(scale, folder)
    if child is not None:
        serve({m.name: m.prepare for m in measurements if m.child == child})
        return
    if not rehearse and jax.default_backend() != "gpu":
        raise InputError("JAX sees no GPU here; --rehearse runs on the CPU.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        inside = [*folder.iterdir()]
    except OSError as error:
        raise InputError(f"Name another folder by --workdir ({error}).") from error
    if inside:
        raise InputError(f"{folder} is not empty: name a new folder by --workdir.")

    def command(child):
        own = ["-m", "benchmarks.gpu", f"--budget={budget}", f"--workdir={folder}"]
        own += ["--rehearse"] * rehearse
        return [sys.executable, *own, f"--child={child}"]

    name, into = "rehearsal", (folder,)
    if not rehearse:
        card = "".join(c if c.isalnum() else "_" for c in jax.devices()[0].device_kind)
        name, into = f"gpu_{card.lower()}", (folder, measure.RESULTS)
    rows: dict[str, Row] = {}
    path = None
    print("\n".join(markdown.table(HEAD, [], words=1)), flush=True)
    with loop.StopSignal() as stop, contextlib.ExitStack() as at_end:
        at_end.callback(shutil.rmtree, folder / "run", ignore_errors=True)
        taking = take_turns(
            {m.name: m.child for m in measurements},
            command,
            folder,
            at_once=parallel.cpu_cores(),
            ready_by=start + PREPARING * budget,
            end_by=start + budget - RESERVE,
            turn_seconds=TURN_SECONDS,
            stop=stop,
        )
        with contextlib.closing(taking):
            for key, row in taking:
                rows[key] = row
                print(markdown.row(cells(key, row)), flush=True)
                if path or "error" not in row:  # else an older result stays
                    result = {
                        "rows": rows,
                        "ratios": compare(scale, rows),
                        "skip_line": skip_line(rows),
                    }
                    for place in into:
                        path = measure.write(name, result, "torch", folder=place)
    print("\n".join(["", *table_of_ratios(compare(scale, rows)), ""]))
    if line := skip_line(rows):
        floor, each = line.values()
        print(f"A step takes {floor:.2f} ms and {each:.3f} ms for each open block.")
    print(path or "Nothing was measured.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = cli.Parser(__doc__, gpu)
    return parser.call(argv, interrupted="Interrupted; nothing was measured.")


if __name__ == "__main__":
    sys.exit(main())
