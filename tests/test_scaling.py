# SPDX-License-Identifier: Apache-2.0
"""What devices say to each other in a step, counted and compiled; the prediction."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rn_jax
from benchmarks import measure, scaling
from rn_jax import parallel
from rn_jax.models import MODELS
from rn_jax.models.resnet import ResNet

SHAPE = (8, 8, 3)
LAYERS = 5  # BatchNorms of `small`, all of 4 channels
LINK = scaling.Link(bandwidth=1e9, latency=1e-6)
RESULT = json.loads((measure.RESULTS / "scaling.json").read_text())


def small(axis_name=parallel.AXIS):
    """A network with four of its BatchNorms in a scan of two turns."""
    return ResNet((2,), features=(4,), axis_name=axis_name)


@pytest.fixture(scope="module")
def hlo():
    """The step of `small`, compiled for two devices as runs compile it."""
    step, (state, batch, key) = scaling.step_and_shapes(small(), SHAPE, batch_size=4)
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), batch)
    step = parallel.compile_train_step(step, jax.devices()[:2])
    return step.lower(state, batch, key).compile().as_text()


def compiled_meetings(hlo):
    """(operation, bytes that a device gives, how often) of a compiled program."""
    bodies = dict(
        re.findall(r"body=%([\w.\-]+),.*known_trip_count\":{\"n\":\"(\d+)", hlo)
    )
    found, times = [], 1
    for line in hlo.splitlines():
        if name := re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*{$", line):
            times = int(bodies.get(name[1], 1))
        if call := re.search(r" = (.*) (all-reduce|all-gather)\(", line):
            shapes = re.findall(r"f32\[([\d,]*)\]", call[1])
            sizes = [math.prod(int(n) for n in s.split(",") if n) for s in shapes]
            # The result of a gather holds what both devices gave.
            given = 4 * sum(sizes) // (2 if call[2] == "all-gather" else 1)
            found.append(scaling.Meeting(call[2], given, times))
    return found


def test_bytes_are_those_of_the_compiled_program(hlo):
    counted = scaling.collectives(small(), SHAPE)
    compiled = compiled_meetings(hlo)
    gathers = [m for m in compiled if m.primitive == "all-gather"]
    sums = [m for m in compiled if m.primitive == "all-reduce"]
    forward = counted.pop(scaling.FORWARD)
    assert forward["bytes"] == scaling.total_bytes(gathers)
    assert forward["calls"] == sum(m.times for m in gathers) == LAYERS
    assert sum(kind["bytes"] for kind in counted.values()) == scaling.total_bytes(sums)
    # One for both sums of each layer's derivative, few for all the rest.
    assert counted[scaling.BACK]["calls"] == LAYERS
    assert sum(m.times for m in sums) <= LAYERS + 3


@pytest.mark.parametrize("axis_name", [parallel.AXIS, None])
def test_closed_forms(axis_name):
    model = small(axis_name)
    found = scaling.collectives(model, SHAPE)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False)
    )
    params, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(variables[name]))
        for name in ("params", "batch_stats")
    )
    assert found[scaling.GRADIENTS]["bytes"] == 4 * params
    # Loss, correct, count, and the two blocks' shares.
    assert found[scaling.REST]["bytes"] == 4 * (3 + 2 + statistics)
    layers = LAYERS if axis_name else 0
    assert found[scaling.FORWARD] == {"calls": layers, "bytes": 4 * 2 * 4 * layers}
    assert found[scaling.BACK] == {"calls": layers, "bytes": 4 * 2 * 4 * layers}


def counted(function):
    """Meetings of a function of f32[3] over two devices."""
    program = jax.make_jaxpr(function, axis_env=[(parallel.AXIS, 2)])(jnp.zeros(3))
    return scaling.meetings(program.eqns)


def test_conditionals_count_as_their_larger_branch():
    def either(x):
        return jax.lax.cond(
            x[0] > 0,
            lambda x: jax.lax.psum(x, parallel.AXIS),
            lambda x: x + jax.lax.psum(x[0], parallel.AXIS),
            x,
        )

    assert counted(either) == [scaling.Meeting("psum", 12, 1)]


def test_what_cannot_be_counted_is_an_error():
    def loop(x):
        return jax.lax.while_loop(
            lambda x: x[0] > 0, lambda x: x - jax.lax.pmean(x, parallel.AXIS), x
        )

    with pytest.raises(ValueError, match="unknown length"):
        counted(loop)
    with pytest.raises(ValueError, match="not counted: pmax"):
        counted(lambda x: jax.lax.pmax(x, parallel.AXIS))


def test_seconds():
    # 2 (n - 1) / n of the bytes, 2 log2 n hops; a gather gets n - 1 times the bytes.
    assert scaling.reduce_seconds(8e6, 4, LINK) == pytest.approx(12e-3 + 4e-6)
    assert scaling.gather_seconds(8e6, 4, LINK) == pytest.approx(24e-3 + 2e-6)
    assert scaling.reduce_seconds(8e6, 1, LINK) == 0
    slow = scaling.Link(bandwidth=1e8, latency=1e-4)
    joined = scaling.Interconnect(LINK, slow)
    one_host = scaling.all_reduce_seconds(8e6, 8, joined)
    assert one_host == scaling.reduce_seconds(8e6, 8, LINK)
    two_hosts = scaling.all_reduce_seconds(8e6, 16, joined)
    assert two_hosts == pytest.approx(one_host + 80e-3 + 2e-4)
    gathered = scaling.all_gather_seconds(1e6, 16, joined)
    assert gathered == pytest.approx(7e-3 + 3e-6 + 80e-3 + 1e-4)


def test_efficiency():
    sent = {
        scaling.FORWARD: {"calls": 0, "bytes": 0},
        scaling.BACK: {"calls": 0, "bytes": 0},
        scaling.GRADIENTS: {"calls": 3, "bytes": 7_000_000},
        scaling.REST: {"calls": 1, "bytes": 1_000_000},
    }
    found = scaling.efficiency(12e-3, sent, 4, scaling.Interconnect(LINK))
    assert found["gradient_seconds"] == pytest.approx(12e-3, rel=1e-3)
    assert found["as_built"] == pytest.approx(1 / 2, rel=1e-3)
    assert found["overlapped"] == pytest.approx(12 / 16, rel=1e-3)
    sent[scaling.FORWARD] = {"calls": 100, "bytes": 0}
    sent[scaling.BACK] = {"calls": 100, "bytes": 0}
    found = scaling.efficiency(12e-3, sent, 4, scaling.Interconnect(LINK))
    assert found["batch_norm_seconds"] == pytest.approx(100 * 6e-6)


@pytest.mark.parametrize("name", scaling.BATCH_PER_DEVICE)
def test_the_result_is_of_these_networks(name):
    found = RESULT["networks"][name]
    assert found["params"] == MODELS[name].params
    for part in found["batch_norm"].values():
        gradients = part["collectives"][scaling.GRADIENTS]
        assert gradients["bytes"] == 4 * found["params"]
        for joined, by_devices in part["efficiency"].items():
            for devices, written in by_devices.items():
                assert written == pytest.approx(
                    scaling.efficiency(
                        found["step_seconds"],
                        part["collectives"],
                        int(devices),
                        scaling.INTERCONNECTS[joined],
                    )
                )


@pytest.mark.slow
@pytest.mark.parametrize("name", scaling.BATCH_PER_DEVICE)
def test_the_result_is_what_the_program_says(name):
    entry, written = MODELS[name], RESULT["networks"][name]["batch_norm"]
    shape = (entry.image_size, entry.image_size, entry.channels)
    for batch_norm, axis_name in (("global", parallel.AXIS), ("device", None)):
        model = rn_jax.create_model(name, axis_name=axis_name)
        found = scaling.collectives(model, shape)
        assert found == written[batch_norm]["collectives"]
