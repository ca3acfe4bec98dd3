# SPDX-License-Identifier: Apache-2.0
"""Predicted efficiency of training on many devices, from counted bytes.

    python -m benchmarks.scaling [--step_seconds=resnet50:0.013,resnet110:0.021]

Communication between devices is counted in the traced training step. The seconds of a
step on one device, with the batch in `BATCH_PER_DEVICE`, are measured ones if
`--step_seconds` has them; for other networks they are computed from multiply-adds and
`--flops`, an assumed rate. Writes results/scaling.json and prints the tables of
docs/scaling.md. Nothing is compiled or run.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rn_jax
from benchmarks import measure
from benchmarks.training_step import make_step
from experiments import markdown
from rn_jax import parallel
from rn_jax.analysis.cost import multiply_adds
from rn_jax.models import MODELS

DEVICES = (8, 64, 512)
DEVICES_PER_HOST = 8
# The paper's batch on one device; for ImageNet, an eighth of it.
BATCH_PER_DEVICE = {"resnet110": 128, "resnet50": 32, "densenet_bc190_40": 64}
# The backward pass has two products for each product of the forward pass.
FLOPS_PER_MULTIPLY_ADD = 6
BACKWARD = 2 / 3

FORWARD, BACK = "BatchNorm forward", "BatchNorm backward"
GRADIENTS, REST = "gradients", "sums and averages"


class Meeting(NamedTuple):
    """A collective operation of the traced step.

    Attributes:
        primitive: "psum" or "all_gather".
        size: bytes that each device sends.
        times: number of calls in a step.
    """

    primitive: str
    size: int
    times: int


def meetings(equations: Sequence[Any], times: int = 1) -> list[Meeting]:
    """Return the collectives over `parallel.AXIS` in the order of the program.

    Those of a scan count as often as it runs; of a conditional, the branch that sends
    most counts.

    Args:
        equations: equations of a jaxpr.
        times: number of times that they run.

    Raises:
        ValueError: a collective of another kind, or in a loop of unknown length.
    """
    found = []
    for equation in equations:
        name, params = equation.primitive.name, equation.params
        axes = params.get("axes", params.get("axis_name", ()))
        inner = [meetings(program.eqns) for program in _programs(params)]
        if name == "cond":
            inner = [max(inner, key=total_bytes)]
        elif name == "while" and any(inner):
            raise ValueError("a collective in a loop of unknown length")
        more = times * (params["length"] if name == "scan" else 1)
        found += [m._replace(times=more * m.times) for part in inner for m in part]
        if parallel.AXIS in axes and name != "axis_index":
            if name not in ("psum", "all_gather"):
                raise ValueError(f"a collective that is not counted: {name}")
            size = sum(v.aval.size * v.aval.dtype.itemsize for v in equation.invars)
            found.append(Meeting(name, size, times))
    return found


def total_bytes(found: Sequence[Meeting]) -> int:
    """Return the bytes that a device sends."""
    return sum(m.size * m.times for m in found)


def _programs(params):
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def step_and_shapes(
    model: Any, image_shape: tuple[int, int, int], batch_size: int = 2
) -> tuple[Callable, tuple[Any, ...]]:
    """Return the training step over several devices, and its arguments as shapes.

    Args:
        model: a network of constant depth; its `axis_name` decides how BatchNorm is
            synchronised.
        image_shape: (H, W, C).
        batch_size: size of the batch; communication does not depend on it.
    """
    step, create = make_step(model, image_shape, axis_name=parallel.AXIS)
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
    }
    return step, (jax.eval_shape(create, key), batch, key)


def collectives(
    model: Any, image_shape: tuple[int, int, int]
) -> dict[str, dict[str, int]]:
    """Return calls and bytes sent by a device in one training step, by purpose.

    Args:
        model, image_shape: as for `step_and_shapes`.
    """
    step, shapes = step_and_shapes(model, image_shape)
    # The number of devices does not change what each of them sends.
    program = jax.make_jaxpr(step, axis_env=[(parallel.AXIS, 2)])(*shapes)
    # The step's own barrier; before it only BatchNorm communicates.
    end = max(
        i
        for i, equation in enumerate(program.eqns)
        if equation.primitive.name == "optimization_barrier"
    )
    inside, at_end = meetings(program.eqns[:end]), meetings(program.eqns[end:])
    leaves = len(jax.tree.leaves(shapes[0].params))
    kinds = {
        FORWARD: [m for m in inside if m.primitive == "all_gather"],
        BACK: [m for m in inside if m.primitive == "psum"],
        GRADIENTS: at_end[:leaves],
        REST: at_end[leaves:],
    }
    return {
        kind: {
            "calls": sum(m.times for m in found),
            "bytes": total_bytes(found),
        }
        for kind, found in kinds.items()
    }


class Link(NamedTuple):
    """A link between members of a group.

    Attributes:
        bandwidth: bytes per second that a member sends while it receives as many.
        latency: seconds of one hop.
    """

    bandwidth: float
    latency: float


class Interconnect(NamedTuple):
    """The links between devices.

    Attributes:
        inside: between the devices of a host; between all devices if `between` is None.
        between: between hosts, shared by the devices of each.
    """

    inside: Link
    between: Link | None = None

    def groups(self, devices: int) -> tuple[int, int]:
        """Return the number of devices that `inside` joins, and of such groups."""
        inside = min(devices, DEVICES_PER_HOST) if self.between else devices
        return inside, devices // inside


# Bandwidths are the vendors', latencies assumed.
NVLINK = Link(450e9, 2e-6)  # the fourth generation's, of an H100 or H200
ICI = Link(200e9, 1e-6)  # a TPU v5e's, all four links together
INTERCONNECTS = {
    "NVLink 4": Interconnect(NVLINK),
    "ICI of TPU v5e": Interconnect(ICI),
    "Ethernet, 100 Gbit/s a host": Interconnect(NVLINK, Link(100e9 / 8, 30e-6)),
    "Ethernet, 25 Gbit/s a host": Interconnect(NVLINK, Link(25e9 / 8, 30e-6)),
}


def reduce_seconds(size: float, members: int, link: Link) -> float:
    """Return the seconds until `members` have the sum of `size` bytes.

    The bytes are those of a ring and the hops those of a tree, which libraries approach
    by halving and doubling or by pipelined trees. A plain ring has 2 (members - 1)
    hops.
    """
    hops = 2 * math.ceil(math.log2(members))
    return 2 * (members - 1) / members * size / link.bandwidth + hops * link.latency


def gather_seconds(size: float, members: int, link: Link) -> float:
    """Return the seconds until `members` have the `size` bytes of each, by doubling."""
    hops = math.ceil(math.log2(members))
    return (members - 1) * size / link.bandwidth + hops * link.latency


def all_reduce_seconds(size: float, devices: int, joined: Interconnect) -> float:
    """Return the seconds of an all-reduce: within hosts, then between them."""
    inside, groups = joined.groups(devices)
    seconds = reduce_seconds(size, inside, joined.inside)
    if groups > 1:
        seconds += reduce_seconds(size, groups, joined.between)
    return seconds


def all_gather_seconds(size: float, devices: int, joined: Interconnect) -> float:
    """Return the seconds of an all-gather: within hosts, then between them."""
    inside, groups = joined.groups(devices)
    seconds = gather_seconds(size, inside, joined.inside)
    if groups > 1:
        seconds += gather_seconds(inside * size, groups, joined.between)
    return seconds


def efficiency(
    step_seconds: float,
    sent: Mapping[str, Mapping[str, int]],
    devices: int,
    joined: Interconnect,
) -> dict[str, float]:
    """Return the share of a step in which devices compute, with a constant batch each.

    Args:
        step_seconds: seconds of a step on one device alone.
        sent: as returned by `collectives`.
        devices: number of devices.
        joined: the links between them.

    Returns:
        "as_built", with the gradients summed after the backward pass; "overlapped", the
        bound if that sum overlapped with it; "batch_norm_seconds" and
        "gradient_seconds", the time of communication.
    """
    seconds = 0.0
    if calls := sent[FORWARD]["calls"]:
        mean = sent[FORWARD]["bytes"] / calls
        seconds += calls * all_gather_seconds(mean, devices, joined)
    if calls := sent[BACK]["calls"]:
        mean = sent[BACK]["bytes"] / calls
        seconds += calls * all_reduce_seconds(mean, devices, joined)
    last = sent[GRADIENTS]["bytes"] + sent[REST]["bytes"]
    at_end = all_reduce_seconds(last, devices, joined)
    left_over = max(0.0, at_end - BACKWARD * step_seconds)
    return {
        "as_built": step_seconds / (step_seconds + seconds + at_end),
        "overlapped": step_seconds / (step_seconds + seconds + left_over),
        "batch_norm_seconds": seconds,
        "gradient_seconds": at_end,
    }


def network(name: str, flops: float, measured: float | None) -> dict[str, Any]:
    """Return the prediction for a network.

    Args:
        name: one of `BATCH_PER_DEVICE`.
        flops: assumed floating point operations per second of one device.
        measured: seconds of its step on one device; None: computed from `flops`.
    """
    entry, batch = MODELS[name], BATCH_PER_DEVICE[name]
    shape = (entry.image_size, entry.image_size, entry.channels)
    cost = multiply_adds(rn_jax.create_model(name), entry.image_size, entry.channels)
    seconds = FLOPS_PER_MULTIPLY_ADD * cost * batch / flops
    seconds = seconds if measured is None else measured
    result = {
        "params": entry.params,
        "multiply_adds": cost,
        "batch_per_device": batch,
        "step_seconds": seconds,
        "step_seconds_are": "assumed" if measured is None else "measured",
        "images_per_second": batch / seconds,
        "batch_norm": {},
    }
    for batch_norm, axis in (("global", parallel.AXIS), ("device", None)):
        sent = collectives(rn_jax.create_model(name, axis_name=axis), shape)
        result["batch_norm"][batch_norm] = {
            "collectives": sent,
            "efficiency": {
                joined: {
                    str(devices): efficiency(seconds, sent, devices, link)
                    for devices in DEVICES
                }
                for joined, link in INTERCONNECTS.items()
            },
        }
    return result


# Mean size of a picture in ImageNet's training archive; those of
# benchmarks/imagenet_feed.py are smaller.
IMAGENET_BYTES = 137.9e9 / 1_281_167
CORES_PER_HOST = (96, 128)


def feeding(networks: Mapping[str, Any], storage: float) -> dict[str, Any]:
    """Return the number of devices that hosts can feed, at each network's rate.

    Args:
        networks: as returned by `network`, by name.
        storage: assumed bytes per second that all hosts together read.
    """
    decoded, path = _result("imagenet_feed")
    per_core = decoded["with_workers"]["pictures_per_second_and_worker"]["rn_jax"]
    rate = networks["resnet50"]["images_per_second"]
    found = {
        "imagenet": {
            "measured_in": path,
            "pictures_per_second_and_core": per_core,
            "pictures_per_second_and_device": rate,
            "cores_per_device": rate / per_core,
            "devices_fed_by_host": {
                str(cores): cores * per_core / rate for cores in CORES_PER_HOST
            },
            "bytes_per_picture": IMAGENET_BYTES,
            "bytes_read_per_second": {
                str(devices): devices * rate * IMAGENET_BYTES for devices in DEVICES
            },
            "storage_bytes_per_second": storage,
            "devices_fed_by_storage": storage / (rate * IMAGENET_BYTES),
        }
    }
    cut, path = _result("cifar_feed_cpu")
    per_process = cut["images_per_second"]["feed"]
    found["cifar"] = {
        "measured_in": path,
        "images_per_second_and_process": per_process,
        "devices_fed_by_process": {
            name: per_process / networks[name]["images_per_second"]
            for name in ("resnet110", "densenet_bc190_40")
        },
    }
    return found


def _result(name):
    path = measure.RESULTS / f"{name}.json"
    return json.loads(path.read_bytes()), f"results/{path.name}"


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of docs/scaling.md by name, from results/scaling.json."""
    return {
        "bytes": _bytes_table(result["networks"]),
        "steps": _steps_table(result["networks"]),
        "interconnects": _interconnects_table(result["interconnects"]),
        "efficiency": _efficiency_table(result["networks"]),
        "seconds": _seconds_table(result["networks"]),
        "feeding": _feeding_table(result["feeding"]),
    }


def _table(header, rows, words=1):
    return "\n".join(markdown.table(header, rows, words=words))


def _bytes_table(networks):
    kinds = (GRADIENTS, FORWARD, BACK, REST)
    rows = []
    for name, found in networks.items():
        for batch_norm, part in found["batch_norm"].items():
            sent = [part["collectives"][kind] for kind in kinds]
            cells = [f"{s['bytes']:,} in {s['calls']:,}" for s in sent]
            total = sum(s["bytes"] for s in sent)
            rows.append([name, batch_norm, *cells, f"{total:,}"])
    return _table(["network", "batch_norm", *kinds, "total"], rows, words=2)


def _steps_table(networks):
    header = ["network", "images", "milliseconds", "images per second", "source"]
    rows = [
        [
            name,
            f"{found['batch_per_device']}",
            f"{1e3 * found['step_seconds']:.1f}",
            f"{found['images_per_second']:,.0f}",
            found["step_seconds_are"],
        ]
        for name, found in networks.items()
    ]
    return _table(header, rows)


def _interconnects_table(interconnects):
    header = ["links", "within a host", "latency", "between hosts", "latency"]
    rows = []
    for joined, links in interconnects.items():
        row = [joined]
        for kind in ("inside", "between"):
            if link := links.get(kind):
                row += [
                    f"{link['bandwidth'] / 1e9:g} GB/s",
                    f"{1e6 * link['latency']:g} µs",
                ]
            else:
                row += ["the same", "the same"]
        rows.append(row)
    return _table(header, rows)


def _efficiency_table(networks):
    header = ["network", "batch_norm", "links", *(f"{n} devices" for n in DEVICES)]
    rows = []
    for name, found in networks.items():
        for batch_norm, part in found["batch_norm"].items():
            for joined, by_devices in part["efficiency"].items():
                cells = [
                    f"{100 * e['as_built']:.0f} ({100 * e['overlapped']:.0f})"
                    for e in (by_devices[str(n)] for n in DEVICES)
                ]
                rows.append([name, batch_norm, joined, *cells])
    return _table(header, rows, words=3)


def _seconds_table(networks):
    header = ["network", "links", *(f"{n} devices" for n in DEVICES)]
    rows = []
    for name, found in networks.items():
        for joined, by_devices in found["batch_norm"]["global"]["efficiency"].items():
            cells = [
                f"{1e3 * e['batch_norm_seconds']:.2f} + "
                f"{1e3 * e['gradient_seconds']:.2f}"
                for e in (by_devices[str(n)] for n in DEVICES)
            ]
            rows.append([name, joined, *cells])
    return _table(header, rows, words=2)


def _feeding_table(found):
    pictures, cifar = found["imagenet"], found["cifar"]
    rows = [
        [
            "pictures per second that a core decodes",
            f"{pictures['pictures_per_second_and_core']:,.0f}",
        ],
        [
            "pictures per second that a device needs for resnet50",
            f"{pictures['pictures_per_second_and_device']:,.0f}",
        ],
        ["cores per device", f"{pictures['cores_per_device']:.1f}"],
        *(
            [f"devices that a host of {cores} cores feeds", f"{devices:.1f}"]
            for cores, devices in pictures["devices_fed_by_host"].items()
        ),
        *(
            [f"gigabytes per second read for {devices} devices", f"{read / 1e9:.1f}"]
            for devices, read in pictures["bytes_read_per_second"].items()
        ),
        [
            "devices that storage of "
            f"{pictures['storage_bytes_per_second'] / 1e9:g} GB/s feeds",
            f"{pictures['devices_fed_by_storage']:.0f}",
        ],
        [
            "CIFAR images per second of a process",
            f"{cifar['images_per_second_and_process']:,.0f}",
        ],
        *(
            [f"devices that this process feeds for {name}", f"{devices:.1f}"]
            for name, devices in cifar["devices_fed_by_process"].items()
        ),
    ]
    return _table(["quantity", "number"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--step_seconds", default="", help="measured seconds by network"
    )
    parser.add_argument(
        "--flops", type=float, default=60e12, help="assumed FLOP/s of a device"
    )
    parser.add_argument(
        "--storage", type=float, default=10e9, help="assumed bytes per second"
    )
    options = parser.parse_args()
    try:
        pairs = [p.split(":") for p in options.step_seconds.split(",") if p]
        measured = {name: float(seconds) for name, seconds in pairs}
    except ValueError:
        parser.error("--step_seconds takes NETWORK:SECONDS,NETWORK:SECONDS")
    if unknown := measured.keys() - BATCH_PER_DEVICE.keys():
        parser.error(f"--step_seconds: {', '.join(unknown)} is not predicted")
    networks = {
        name: network(name, options.flops, measured.get(name))
        for name in BATCH_PER_DEVICE
    }
    links = {
        joined: {kind: link._asdict() for kind, link in pair._asdict().items() if link}
        for joined, pair in INTERCONNECTS.items()
    }
    result = {
        **vars(options),
        "devices_per_host": DEVICES_PER_HOST,
        "interconnects": links,
        "networks": networks,
        "feeding": feeding(networks, options.storage),
    }
    path = measure.write("scaling", result)
    for table in tables(result).values():
        print(f"{table}\n")
    print(path)


if __name__ == "__main__":
    main()
