# SPDX-License-Identifier: Apache-2.0
"""Count what a training step makes a GPU or a TPU do, on a machine without them.

    python -m benchmarks.device_program [--device=h200] [--model=resnet110,resnet50]
        [--batch_size=128] [--dtype=float32,bfloat16] [--last_survival=1.0,0.5]
        [--scan_unroll=1] [--conv_gradient=xla]

XLA compiles for absent devices from a description. The step is the one that
`experiments.run` compiles for the config of that name. Nothing runs, so there are no
times. `make device-programs` creates the environments that have the compilers.
"""

import collections
import dataclasses
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import configs
import rn_jax
from benchmarks import measure
from benchmarks.training_step import make_experiment
from configs.default import Config
from experiments import markdown
from experiments.cli import Parser
from experiments.config import load_config
from experiments.training import environment, setup
from experiments.training.network import make_model
from rn_jax import InputError
from rn_jax.errors import first_line, unknown_name
from rn_jax.models import MODELS
from rn_jax.models.network import Network
from rn_jax.models.trunk import default_unroll

DESCRIPTIONS = Path(__file__).parent / "devices"


@dataclasses.dataclass(frozen=True)
class Device:
    """A device to compile for.

    Attributes:
        backend: JAX's name of its kind, as `jax.default_backend` returns it.
        memory: bytes.
        topology: arguments of `get_topology_desc`.
        environment: variables that the compiler needs.
        compiler: the package that has it.
    """

    backend: str
    memory: int
    topology: Mapping[str, str]
    environment: Mapping[str, str]
    compiler: str


DEVICES = {
    "h200": Device(
        "gpu",
        150_109_880_320,
        {"platform": "cuda", "topology_name": "", "topology": "1x1x8"},
        {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
        "jax-cuda12-pjrt",
    ),
    "v5e": Device(
        "tpu",
        16 * 2**30,
        {"platform": "tpu", "topology_name": "v5e:2x2"},
        {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        },
        "libtpu",
    ),
}
# The batch of one device by the name of the config.
_OF_CIFAR, _OF_IMAGENET = {"h200": 128, "v5e": 128}, {"h200": 256, "v5e": 64}
_HALF = {"h200": 64, "v5e": 64}
NETWORKS = {
    "resnet20": _OF_CIFAR,
    "resnet110": _OF_CIFAR,
    "resnet1202": _OF_CIFAR,
    "preact_resnet164": _OF_CIFAR,
    "preact_resnet1001": _HALF,
    "resnet50": _OF_IMAGENET,
    "resnext50_32x4d": _OF_IMAGENET,
    "densenet_bc100_12": _HALF,
    "vgg16": _OF_IMAGENET,
}


def batch_of(model: str, device: str) -> int:
    """Return a batch size with which a network fits in one device's memory."""
    large = MODELS[model].image_size > 32
    return NETWORKS.get(model, _OF_IMAGENET if large else _OF_CIFAR)[device]


def describe(name: str) -> list[jax.Device]:
    """Return absent devices to compile for.

    Raises:
        InputError: the device is unknown, or its compiler is not installed.
    """
    if name not in DEVICES:
        raise unknown_name("device", name, DEVICES)
    device = DEVICES[name]
    os.environ.update(device.environment)
    jax.config.update("jax_platforms", "cpu")  # for what is not compiled for it
    topology = dict(device.topology)
    description = DESCRIPTIONS / f"{name}.pbtxt"
    if description.exists():
        topology["target_config"] = description.read_text("utf-8")
    try:
        return list(topologies.get_topology_desc(**topology).devices)
    except Exception as error:  # JAX promises no type
        raise InputError(
            f"This environment has no compiler for {name} ({first_line(error)}); "
            "`make device-programs` creates one that does."
        ) from error


def lower(config: Config, devices: Sequence[jax.Device]) -> tuple[Any, Network]:
    """Return the lowered training step of a config for devices, and its network.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    model = make_model(config)
    if getattr(model, "scan_unroll", 0) is None:  # which asks for this machine's
        unroll = default_unroll(model.num_blocks, devices[0].platform)
        kwargs = {**config.model_kwargs, "scan_unroll": unroll}
        config = dataclasses.replace(config, model_kwargs=kwargs)
    experiment, batch = make_experiment(config, devices)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(experiment.create_state, key)
    batch = jax.eval_shape(lambda: batch)
    step = setup.make_train_step(experiment)
    given = state, batch, key
    if len(devices) == 1:
        sharding = SingleDeviceSharding(devices[0])
        given = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), given
        )
    return step.lower(*given), experiment.model


# --- What a GPU launches --------------------------------------------------------------


@dataclasses.dataclass
class Thunk:
    """Something that XLA's runtime launches, or a group of such.

    Attributes:
        kind: such as "CustomKernel", "Convolution" or "While".
        name: its kernel, or else its instruction in the optimised program.
        parts: thunks inside it by the label above them, such as "body"; "" without one.
    """

    kind: str
    name: str
    parts: dict[str, list["Thunk"]] = dataclasses.field(default_factory=dict)


_THUNK = re.compile(r"( *)(\d+): k(\w+) +\[[^]]*\] *(\S*)")
_LABEL = re.compile(r"( *)(\w+):\s*")


def read_thunks(text: str, instructions: Mapping[int, str]) -> list[Thunk]:
    """Return the thunks of a dumped sequence, nested as its lines are indented.

    Args:
        text: "...thunk_sequence_after_thunk_passes.txt".
        instructions: the instruction of each thunk, by its number.
    """
    root = Thunk("Sequential", "")
    groups = [(-1, root, "")]  # indentation, thunk, label of the part being read
    for line in text.splitlines():
        if label := _LABEL.fullmatch(line):
            # XLA does not indent the label "condition" of a loop inside another thunk;
            # it is that of the loop just above it.
            while label[2] != "condition" and groups[-1][0] > len(label[1]):
                groups.pop()
            groups[-1] = (*groups[-1][:2], label[2])
        elif found := _THUNK.match(line):
            indent, number, kind, kernel = found.groups()
            while groups[-1][0] >= len(indent):
                groups.pop()
            _, parent, part = groups[-1]
            name = instructions.get(int(number), "")
            thunk = Thunk(kind, kernel if kind == "CustomKernel" else name)
            parent.parts.setdefault(part, []).append(thunk)
            groups.append((len(indent), thunk, ""))
    return root.parts.get("", [])


class Cost(NamedTuple):
    """What a part of a program makes a GPU and its host do.

    Attributes:
        launches: kernels, copies, and calls of cuDNN and cuBLAS.
        reductions: those of them that reduce.
        copies: those of them that copy, slice or concatenate.
        conversions: those of them that only convert an array to another dtype.
        outside_graphs: those of them outside CUDA graphs.
        waits: decisions of the host that it waits for.
    """

    launches: float = 0
    reductions: float = 0
    copies: float = 0
    conversions: float = 0
    outside_graphs: float = 0
    waits: float = 0

    def plus(self, other: "Cost", times: float = 1) -> "Cost":
        """Return the cost of this part and of `times` times the other one."""
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


def cost(
    thunks: Sequence[Thunk],
    turns: Callable[[Thunk], tuple[float, bool]],
    share_open: Callable[[Thunk], float] | None,
    *,
    in_graph: bool = False,
) -> Cost:
    """Return the cost of thunks that run one after another.

    Args:
        thunks: the thunks.
        turns: loop -> (number of its turns, whether only the device knows it).
        share_open: conditional -> share of its runs that take the side of an open
            block, which is the one that reduces more; None: the side that launches more
            is always taken.
        in_graph: whether they are in a CUDA graph.
    """
    of = partial(cost, turns=turns, share_open=share_open)
    wait = Cost(waits=not in_graph)
    total = Cost()
    for thunk in thunks:
        if thunk.kind == "While":
            times, decided_there = turns(thunk)
            total = total.plus(of(thunk.parts["body"], in_graph=in_graph), times)
            if decided_there:
                check = of(thunk.parts["condition"], in_graph=in_graph)
                total = total.plus(check.plus(wait), times + 1)
        elif thunk.kind == "Conditional":
            sides = [of(part, in_graph=in_graph) for part in thunk.parts.values()]
            total = total.plus(wait)
            if share_open is None:
                total = total.plus(max(sides))
                continue
            closed, opened = closed_first(sides)
            share = share_open(thunk)
            total = total.plus(opened, share).plus(closed, 1 - share)
        elif thunk.parts:
            inside = in_graph or thunk.kind == "CommandBuffer"
            for part in thunk.parts.values():
                total = total.plus(of(part, in_graph=inside))
        else:
            copies = thunk.kind == "Copy" or re.search("slice|copy|concat", thunk.name)
            one = Cost(
                launches=1,
                reductions="reduce" in thunk.name,
                copies=bool(copies),
                conversions="wrapped_convert" in thunk.name,
                outside_graphs=not in_graph,
            )
            total = total.plus(one)
    return total


def closed_first(sides: Sequence[Cost]) -> list[Cost]:
    """Return the sides of a conditional: that of a closed block, then the open one.

    BatchNorm reduces on the open side; the other one may have more copies.
    """
    return sorted(sides, key=lambda side: (side.reductions, side.launches))


class GpuProgram:
    """A program for a GPU, read from the files that XLA dumps.

    Args:
        folder: that of `xla_dump_to`.
        model: the network, whose stages have the loops and conditionals.
    """

    def __init__(self, folder: Path, model: Network):
        self._lines = {
            found[1]: found[0]
            for found in re.finditer(
                r"^ *(?:ROOT )?%(\S+) = .*",
                _read(folder, "gpu_after_optimizations.txt"),
                re.M,
            )
        }
        found = re.findall(
            r'profile_annotation: "(.*)"\s+thunk_id: (\d+)',
            _read(folder, "thunk_metadata.txt"),
        )
        self._thunks = read_thunks(
            _read(folder, "thunk_sequence_after_thunk_passes.txt"),
            {int(number): name for name, number in found},
        )
        self._model = model

    @property
    def graphs(self) -> int:
        """Number of CUDA graphs."""
        kinds = [thunk.kind for thunk, _ in self._all(self._thunks)]
        return kinds.count("CommandBuffer")

    def cost(self, *, expected: bool) -> Cost:
        """Return the expected cost of a step, or the largest one."""
        return self._cost(self._thunks, expected)

    def launches_of_closed_blocks(self) -> list[dict[str, float]]:
        """Return how many blocks launch how much when they are closed.

        Forward and backward are counted together, for each kind of blocks that XLA
        tells apart: each block that changes the shape, and the others of a stage.
        Blocks without a conditional are not included.
        """
        launches: collections.Counter[tuple[int, ...]] = collections.Counter()
        for thunk, times in self._all(self._thunks):
            if thunk.kind == "Conditional":
                sides = [self._cost(part, False) for part in thunk.parts.values()]
                closed, _ = closed_first(sides)
                kind = tuple(block.index for block in self._blocks(thunk))
                launches[kind] += times * closed.launches
        blocks: collections.Counter[float] = collections.Counter()
        for kind, total in launches.items():
            blocks[total / len(kind)] += len(kind)
        return [{"launches": n, "blocks": blocks[n]} for n in sorted(blocks)]

    def _all(self, thunks, times=1):
        """Yield each thunk with the number of its runs in a step, at most."""
        for thunk in thunks:
            yield thunk, times
            again = self._turns(thunk, False)[0] if thunk.kind == "While" else 1
            for part in thunk.parts.values():
                yield from self._all(part, times * again)

    def _cost(self, thunks, expected):
        turns = partial(self._turns, expected=expected)

        def share_open(conditional):
            return float(self._survival(conditional).mean())

        return cost(thunks, turns, share_open if expected else None)

    def _turns(self, loop, expected):
        """Return the number of a loop's turns, and whether only the device knows it."""
        line = self._lines[loop.name]
        if known := re.search(r'known_trip_count":\{"n":"(\d+)', line):
            return int(known[1]), False
        survival = self._survival(loop)
        return float(survival.sum()) if expected else len(survival), True

    def _survival(self, thunk):
        """Return p_l of the blocks that a thunk of a stage is about."""
        model = self._model
        probs = rn_jax.survival_probs(model.stochastic_depth, model.num_blocks)
        indices = [block.index for block in self._blocks(thunk)]
        return np.asarray(probs, np.float64)[indices]

    def _blocks(self, thunk):
        """Return the blocks that a thunk of a stage is about."""
        line = self._lines[thunk.name]
        stage = re.search(r"/stage(\d+)/", line)
        if stage is None:
            raise ValueError(f"{thunk.name} belongs to no stage.")
        place = int(stage[1]), "/first/" in line
        return [b for b in self._model.blocks if f"/{b.name}/" in line] or [
            b for b in self._model.blocks if (b.stage, b.apart) == place
        ]


def _read(folder, suffix):
    # The largest, because constants of the step are programs of their own.
    return max((p.read_text("utf-8") for p in folder.glob(f"*{suffix}")), key=len)


# --- The command ----------------------------------------------------------------------


def compile_for(
    device: str,
    name: str,
    batch_size: int,
    dtype: str,
    last_survival: float,
    scan_unroll: int | None = None,
    conv_gradient: str = "auto",
) -> dict[str, Any]:
    """Compile the training step of a config for a device and return its counts.

    Raises:
        InputError: an argument is unknown, or the device's compiler is not installed.
    """
    options = [f"--config=configs/{name}.py", f"--config.dtype={dtype}"]
    options += [f"--config.batch_size={batch_size}", "--config.num_devices=1"]
    options.append("--config.stochastic_depth=None")
    if last_survival < 1:
        options.append(f"--config.stochastic_depth.last_survival={last_survival}")
    if scan_unroll:
        options.append(f"--config.model_kwargs.scan_unroll={scan_unroll}")
    if conv_gradient != "auto":
        options.append(f"--config.model_kwargs.conv_gradient={conv_gradient}")
    devices = describe(device)[:1]
    backend = DEVICES[device].backend
    _, config = load_config(options)
    start = time.process_time()
    program, model = lower(config, devices)
    scan_unroll = getattr(model, "scan_unroll", None)
    traced = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = program.compile(dump)
        memory = compiled.memory_analysis()
        row = {
            "jax": jax.__version__,
            "compiler": version(DEVICES[device].compiler),
            "model": name,
            "batch_size": batch_size,
            "dtype": dtype,
            "last_survival": last_survival,
            "scan_unroll": scan_unroll,
            "conv_gradient": conv_gradient,
            "form": form_of(scan_unroll, model.num_blocks, conv_gradient),
            "argument_mib": memory.argument_size_in_bytes / 2**20,
            "temporary_mib": memory.temp_size_in_bytes / 2**20,
            "trace_seconds": traced - start,
            "compile_seconds": time.process_time() - traced,
        }
        if backend == "gpu":
            found = GpuProgram(Path(folder), model)
            row["at_most"] = found.cost(expected=False)._asdict()
            row["expected"] = found.cost(expected=True)._asdict()
            row["cuda_graphs"] = found.graphs
            row["launches_of_closed_blocks"] = found.launches_of_closed_blocks()
    if backend == "tpu":
        text = compiled.as_text()
        for kind in ("fusion", "while", "conditional"):
            row[f"{kind}s"] = len(re.findall(rf" {kind}\(", text))
    return row


def form_of(scan_unroll: int | None, num_blocks: int, conv_gradient: str) -> str:
    """Return the form of a network's program, as the table names it."""
    forms = []
    if scan_unroll is not None and scan_unroll >= num_blocks:
        forms.append("line")
    elif scan_unroll is not None:
        forms.append("loop" if scan_unroll == 1 else f"loop of {scan_unroll}")
    if conv_gradient != "auto":
        forms.append(conv_gradient)
    return ", ".join(forms)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of programs."""
    head = ["network", "batch", "dtype", "p_L", "form"]
    if "at_most" in rows[0]:
        head += ["launches", "expected", "reductions", "copies", "conversions"]
        head += ["waits", "graphs", "outside"]
    else:
        head += ["fusions", "loops", "conditionals"]
    head += ["MiB", "CPU s to compile"]
    cells = []
    for row in rows:
        texts = [row["model"], str(row["batch_size"]), row["dtype"]]
        texts.append(f"{row['last_survival']:g}")
        texts.append(row["form"])
        if "at_most" in row:
            most = row["at_most"]
            counts = [most["launches"], row["expected"]["launches"]]
            counts += [most["reductions"], most["copies"], most["conversions"]]
            counts += [most["waits"], row["cuda_graphs"], most["outside_graphs"]]
        else:
            counts = [row["fusions"], row["whiles"], row["conditionals"]]
        counts += [row["temporary_mib"], row["compile_seconds"]]
        cells.append(texts + [f"{count:,.0f}" for count in counts])
    return markdown.table(head, cells, words=5)


def _key(row):
    """What tells a row from others, in the order of a table."""
    networks = [*NETWORKS, row["model"]]
    kind = (row["dtype"] != "float32", row["dtype"], -row["last_survival"])
    place = networks.index(row["model"]), row["model"]
    return (*place, *kind, row["form"], row["batch_size"])


def _words(text):
    return tuple(text.split(","))


def _numbers(text):
    return tuple(map(float, text.split(",")))


def device_program(
    *,
    device: str = "h200",
    model: Annotated[Sequence[str], _words] = tuple(NETWORKS),
    batch_size: int | None = None,
    dtype: Annotated[Sequence[str], _words] = ("float32", "bfloat16"),
    last_survival: Annotated[Sequence[float], _numbers] = (1.0, 0.5),
    scan_unroll: int | None = None,
    conv_gradient: str = "auto",
) -> Path:
    """Compile training steps for a device, print a table, and write it to results/.

    Args:
        device: to compile for, h200 or v5e.
        model: names of configs, separated by commas.
        batch_size: examples of a step; None: one that suits the network.
        dtype: dtypes to compute in, separated by commas.
        last_survival: p_L, separated by commas. 1 is constant depth, the only one for
            networks without shortcuts.
        scan_unroll: blocks per iteration of a loop; None: what suits the device.
        conv_gradient: rule of gradients, auto or xla. With xla, a loop visits closed
            blocks too, and has a conditional for each.

    Returns:
        The JSON file. It keeps its other rows of this version of JAX; each row has the
        commit, command and machine that made it.
    """
    describe(device)  # before anything is compiled
    kept = {}
    path = measure.RESULTS / f"device_programs_{device}.json"
    if path.exists():
        rows = json.loads(path.read_bytes())["programs"]
        kept = {_key(row): row for row in rows if row["jax"] == jax.__version__}
    shown = 0
    for name in model:
        entry = configs.get_config(name)
        has_shortcuts = rn_jax.create_model(entry.model).has_shortcuts
        size = batch_size or batch_of(entry.model, device)
        for kind in dtype:
            for survival in last_survival:
                if survival < 1 and not has_shortcuts:
                    continue
                form = scan_unroll, conv_gradient
                row = compile_for(device, name, size, kind, survival, *form)
                row["commit"] = environment.git_revision()
                row["command"] = measure.command()
                row["machine"] = environment.machine()
                kept[_key(row)] = row
                lines = table([row])
                print("\n".join(lines[2:] if shown else lines), flush=True)
                shown += 1
                rows = sorted(kept.values(), key=_key)
                measure.write(path.stem, {"programs": rows}, folder=path.parent)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(__doc__, device_program)
    return parser.call(argv, interrupted="Interrupted; the rows above are kept.")


if __name__ == "__main__":
    sys.exit(main())
