# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.gpu` measures.

A function `prepare_...` does what takes long, such as to compile, and returns the
function that then measures on a machine that does nothing else.
"""

import dataclasses
import functools
import statistics
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import configs
from benchmarks import measure
from benchmarks.skip import exactly_open
from benchmarks.training_step import make_experiment
from benchmarks.turns import Measure, Row
from configs.default import Config
from experiments.config import make_config
from experiments.training import loop, setup
from experiments.training.network import make_model
from rn_jax import InputError, data, parallel


class Workload(NamedTuple):
    """A network and its batch.

    Attributes:
        config: name of the config.
        model: name of the network, here and in PyTorch.
        dtype: of the computation.
        batch_size: examples of a step.
        image_size: side of the images in pixels.
        of_compiled: goal of our time over that of torch.compile.
        of_constant_depth: goal of the time with p_L = 0.5 over that of constant depth.
        images_per_second: goal of our rate.
        stage_sizes: blocks of our stages; None: the network's.
    """

    config: str
    model: str
    dtype: str
    batch_size: int
    image_size: int = 32
    of_compiled: float | None = None
    of_constant_depth: float | None = None
    images_per_second: float | None = None
    stage_sizes: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The network and the dtype."""
        return f"{self.model} {self.dtype}"


class Form(NamedTuple):
    """A form of our program.

    Attributes:
        in_line: blocks in a straight line instead of a scan.
        graphs: the step is one CUDA graph.
    """

    in_line: bool = True
    graphs: bool = True

    @property
    def name(self) -> str:
        """Such as "line, no graphs"."""
        line, graphs = "line" if self.in_line else "scan", "" if self.graphs else "no "
        return f"{line}, {graphs}graphs"


BEST = Form()


class Scale(NamedTuple):
    """What is measured, and for how long.

    Attributes:
        workloads: whose steps are timed; more is measured of the first.
        run: of the real run.
        steps: number of steps of a round of timing.
        rounds: number of rounds.
        run_steps: number of steps of the real run.
    """

    workloads: tuple[Workload, ...]
    run: Workload
    steps: int
    rounds: int
    run_steps: int


class Program:
    """The compiled step of a config with random images on the device, and its state."""

    def __init__(self, config: Config):
        device = jax.devices()[0]
        if config.cuda_graphs and device.platform != "cpu":
            if parallel.cuda_graph_options(device) is None:
                raise InputError("XLA does not know the options of CUDA graphs here.")
        experiment, batch = make_experiment(config, [device])
        step = setup.make_train_step(experiment)
        self.key = jax.random.key(1)
        self.batch = jax.device_put(batch, device)
        self.state = jax.device_put(experiment.create_state(self.key), device)
        self.step = step.lower(self.state, self.batch, self.key).compile()

    def enqueue(self) -> None:
        """Take a step without waiting for its end."""
        self.state, _ = self.step(self.state, self.batch, self.key)

    def wait(self) -> None:
        """Wait for all steps."""
        jax.block_until_ready(self.state)


def config_of(workload: Workload, form: Form = BEST, **fields: Any) -> Config:
    """Return the config of a workload.

    Args:
        workload: network and batch.
        form: of the program.
        **fields: further fields of the config.
    """
    config = make_config(configs.get_config(workload.config))
    kwargs = dict(config.model_kwargs)
    if workload.stage_sizes is not None:
        kwargs["stage_sizes"] = workload.stage_sizes
    config = dataclasses.replace(config, model_kwargs=kwargs)
    unroll = make_model(config).num_blocks if form.in_line else 1
    return dataclasses.replace(
        config,
        model_kwargs={**kwargs, "scan_unroll": unroll},
        dtype=workload.dtype,
        batch_size=workload.batch_size,
        num_devices=1,
        cuda_graphs=form.graphs,
        **{"augment": False, **fields},  # PyTorch's steps here do not augment
    )


@functools.cache
def program(
    workload: Workload, last_survival: float, form: Form = BEST, **fields: Any
) -> Program:
    """Return the program of a workload, compiled once in a process."""
    depth = {"last_survival": last_survival} if last_survival < 1 else None
    return Program(config_of(workload, form, stochastic_depth=depth, **fields))


def timed(step: Any, batch_size: int, scale: Scale) -> Row:
    """Time a step that has `enqueue` and `wait`."""
    seconds = measure.in_flight(
        step.enqueue, step.wait, steps=scale.steps, rounds=scale.rounds
    )
    middle = statistics.median(seconds)
    return {
        "ms": 1e3 * middle,
        "ms_of_rounds": [1e3 * s for s in seconds],
        "images_per_second": batch_size / middle,
    }


def prepare_step(
    workload: Workload, scale: Scale, last_survival: float, form: Form
) -> Measure:
    """Prepare timing a step of ours."""
    step = program(workload, last_survival, form)
    return partial(timed, step, workload.batch_size, scale)


def prepare_open(workload: Workload, scale: Scale, number: int) -> Measure:
    """Prepare timing a step with a number of open blocks."""
    depth = exactly_open(number, make_model(config_of(workload)).num_blocks)
    step = Program(config_of(workload, stochastic_depth={"schedule": depth.schedule}))

    def take():
        return {**timed(step, workload.batch_size, scale), "open_blocks": number}

    return take


def prepare_torch(
    workload: Workload,
    scale: Scale,
    compile_mode: str | None,
    last_survival: float | None,
) -> Measure:
    """Prepare timing PyTorch's step, which has to run to be compiled."""
    from benchmarks import torch_peer

    step = torch_peer.Step(
        workload.model,
        batch_size=workload.batch_size,
        image_size=workload.image_size,
        last_survival=last_survival,
        dtype=workload.dtype,
        compile_mode=compile_mode,
    )
    step.keep_batch_on_device()
    if compile_mode is not None:
        for _ in range(3):  # compile, and record the CUDA graphs
            step()
    return partial(timed, step, workload.batch_size, scale)


def prepare_equality(workload: Workload, last_survival: float) -> Measure:
    """Prepare comparing a step with CUDA graphs with the same step without.

    Both are of one process, so that XLA chooses the same algorithms for them, and the
    step without is taken twice, to see what its own repetition changes.
    """
    exact = {"matmul_precision": "float32"}
    without, graphs = (
        program(workload, last_survival, Form(graphs=g), **exact) for g in (False, True)
    )

    def compare():
        first = jax.device_get(without.state)
        expected, again, found = (
            jax.device_get(p.step(jax.device_put(first), without.batch, without.key))
            for p in (without, without, graphs)
        )
        differences = {
            "repeated": differences_of(expected, again),
            "graphs": differences_of(expected, found),
        }
        largest = float(np.max(list(differences["graphs"].values())))  # or NaN
        return {
            "difference": largest,
            "differences": differences,
            "note": f"{largest:.1e}",
        }

    return compare


def differences_of(expected: Any, found: Any) -> dict[str, float]:
    """Return the relative differences of two results of a step, by their parts."""
    parts = [
        {
            "loss": sums["loss"],
            "open": sums["open"],
            "params": state.params,
            "batch_stats": state.batch_stats,
            "opt_state": state.opt_state,  # after one step, that of the gradient
        }
        for state, sums in (expected, found)
    ]
    return {
        name: relative_difference(part, parts[1][name])
        for name, part in parts[0].items()
    }


def relative_difference(expected: Any, found: Any) -> float:
    """Return |found - expected| / |expected| of trees of arrays, in the 2-norm."""
    flat, other = (
        np.concatenate(
            [np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]
        )
        for tree in (expected, found)
    )
    norm, difference = np.linalg.norm(flat), np.linalg.norm(other - flat)
    return float(difference / norm) if norm else float(difference)


def prepare_run(workload: Workload, scale: Scale, folder: Path) -> Measure:
    """Prepare a run by a short one, whose programs stay in a cache on disk."""
    fields = {
        "dataset": data_set(),
        "augment": True,
        "epochs": None,
        "lr_drops": (),
        "lr_drops_unit": "steps",
        "eval_every_steps": scale.run_steps,
        "compilation_cache": str(folder / "cache"),
    }

    def run(name, steps):
        config = config_of(workload, steps=steps, **fields)
        return loop.train(config, str(folder / name))

    def take():
        summary = run("run", scale.run_steps)
        rate = summary["images_per_second"]
        return {
            "ms": 1e3 * workload.batch_size / rate,
            "images_per_second": rate,
            "note": f"{scale.run_steps:,} steps on {summary['dataset']}",
        }

    run("short_run", 3)
    return take


def prepare_bare(workload: Workload, scale: Scale) -> Measure:
    """Prepare timing the step of the real run by itself."""
    step = Program(config_of(workload, dataset=data_set(), augment=True))
    return partial(timed, step, workload.batch_size, scale)


@functools.cache
def data_set() -> str:
    """Return CIFAR-10, or the digits of scikit-learn where it is not prepared."""
    try:
        data.load("cifar10")
    except InputError:
        return "digits"
    return "cifar10"


def prepare_trace(workload: Workload, folder: Path) -> Measure:
    """Prepare a trace of some steps with p_L = 0.5."""
    step = program(workload, 0.5)

    def take():
        measure.in_flight(step.enqueue, step.wait, steps=1, rounds=1)
        with jax.profiler.trace(str(folder / "trace")):
            for _ in range(3):
                step.enqueue()
            step.wait()
        return {"note": "of 3 steps"}

    return take
