# SPDX-License-Identifier: Apache-2.0
"""Which devices are chosen, and which settings are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rn_jax import InputError, parallel

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def devices():
    """JAX is in use, so `choose_devices` does not change their number."""
    jax.devices()


def test_none_takes_as_many_cores_as_divide_the_batch(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    assert len(parallel.choose_devices(None, 64)) == 4
    assert len(parallel.choose_devices(None, 63)) == 3
    assert len(parallel.choose_devices(None, 61)) == 1


def test_batch_that_does_not_divide_is_said_with_one_that_would():
    with pytest.raises(InputError, match=r"batch_size 100 is not divisible.*104"):
        parallel.choose_devices(8, 100)


def test_more_devices_than_there_are():
    count = len(jax.devices())
    with pytest.raises(InputError, match=f"num_devices is 99, but there are {count}"):
        parallel.choose_devices(99, 99)
    with pytest.raises(InputError, match="at least 1"):
        parallel.choose_devices(0, 8)


def test_virtual_devices_always_synchronise():
    devices = jax.devices()[:2]
    assert parallel.batch_norm_axis(devices, "device") == parallel.AXIS
    assert parallel.batch_norm_axis(devices, "global") == parallel.AXIS
    assert parallel.batch_norm_axis(devices[:1], "global") is None
    with pytest.raises(InputError, match="batch_norm must be"):
        parallel.batch_norm_axis(devices, "local")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"coordinator": "node1:1234"}, "must be given together"),
        ({"num_processes": 2, "process_id": 0}, "must be given together"),
        (("node1:1234", 2, 2), "must be in 0 .. num_processes - 1, not 2 of 2"),
        (("node1:1234", 0, 0), "not 0 of 0"),
        (("node1", 2, 0), "must be HOST:PORT, such as node1:1234, not 'node1'"),
        ({"heartbeat_timeout": 0}, "at least 1 second, not 0"),
    ],
)
def test_processes_that_cannot_be(given, says):
    if isinstance(given, tuple):
        names = ("coordinator", "num_processes", "process_id")
        given = dict(zip(names, given, strict=True))
    with pytest.raises(InputError, match=says):
        parallel.join_processes(**given)


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # a batch script's shell
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_launchers_of_several_processes(environ, several):
    assert parallel.launched_with_others(environ) == several


@pytest.mark.parametrize("error", [ValueError("no address"), KeyError("OMPI_X")])
def test_launcher_that_jax_cannot_read_is_said(monkeypatch, error):
    def initialize(*_, **__):
        raise error

    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match=r"which processes to join .*unset the SLURM"):
        parallel.join_processes()


def test_alone_nothing_is_waited_for():
    assert not parallel.join_processes()
    assert parallel.is_first_process()
    assert parallel.all_true(True) and not parallel.all_true(False)
    agreement = parallel.Agreement()
    assert agreement.any(True) and not agreement.any(False)
    with pytest.raises(InputError, match="this one"), parallel.together():
        raise InputError("this one")


# None is a platform here, except the first half of the last one, which JAX starts.
PLATFORMS = ("CPU", "nonsense", "cuda", " cpu", "cpu ", ",cpu", "cpu,nonsense")
START = """
import json, os, sys, jax
from rn_jax import InputError, parallel

for name in sys.argv[1:]:
    os.environ["JAX_PLATFORMS"] = name
    jax.config.update("jax_platforms", name)
    try:
        with parallel.together():
            parallel.choose_devices(None, 8)
    except InputError as error:
        print(json.dumps([name, str(error)]))
"""


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), PLATFORMS),
        # JAX's assertion is gone, and its None is kept for later calls.
        pytest.param(("-OO",), ("cuda",), marks=pytest.mark.slow),
        pytest.param((), ("cpu,",), marks=pytest.mark.slow),
    ],
)
def test_platform_that_jax_cannot_use_is_said(options, names):
    done = subprocess.run(
        [sys.executable, *options, "-c", START, *names],
        env={
            **{k: v for k, v in os.environ.items() if k != "JAX_PLATFORM_NAME"},
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = dict(map(json.loads, done.stdout.splitlines()))
    assert list(told) == list(names)
    for name, sentence in told.items():
        assert sentence.startswith(f"JAX cannot start with JAX_PLATFORMS={name!r} (")
        assert sentence.count("as JAX_PLATFORMS=cpu") == 1
        assert "NoneType" not in sentence and "PLATFORM_NAME" not in sentence


def test_cuda_graphs_are_for_gpus_whose_xla_knows_the_options(monkeypatch, capsys):
    cpu = jax.devices()[0]
    assert parallel.cuda_graph_options(cpu) is None
    assert capsys.readouterr().err == ""

    class Gpu:
        platform, device_kind = "gpu", "Tesla T4"  # "NVIDIA" is in some names only

    class Amd:
        platform, device_kind = "gpu", "AMD Instinct MI300X"

    asked = []

    class Lowered:
        def lower(self, *_):
            return self

        def compile(self, options):
            asked.append(options)
            if fails:
                raise RuntimeError("No such option: 'xla_gpu_new'\nand a trace")

    monkeypatch.setattr(jax, "jit", lambda _: Lowered())
    monkeypatch.setattr(parallel, "SingleDeviceSharding", lambda _: None)
    fails = False
    options = parallel.cuda_graph_options(Gpu())
    assert asked == [dict(options)]
    assert "CONVOLUTION" in options["xla_gpu_enable_command_buffer"]
    assert capsys.readouterr().err == ""
    assert parallel.cuda_graph_options(Amd()) is None
    fails = True
    assert parallel.cuda_graph_options(Gpu()) is None
    said = capsys.readouterr().err
    assert said.startswith("rn_jax: Training without CUDA graphs: ")
    assert said.count("\n") == 1 and "'xla_gpu_new'" in said


@pytest.mark.parametrize("mode", parallel.MODES)
@pytest.mark.parametrize("count", [1, 2])
def test_compiler_options_reach_the_compiler(mode, count, monkeypatch):
    def step(state, batch, key):
        total = batch["x"].sum() + jax.random.uniform(key)
        return state + (jax.lax.psum(total, parallel.AXIS) if count > 1 else total), key

    def results(options):
        devices = jax.devices()[:count]
        compiled = parallel.compile_train_step(
            step, devices, mode=mode, compiler_options=options
        )
        state = parallel.replicate(np.float32(0), devices, mode=mode)
        found = []
        for number in range(3):  # the state is donated and given again
            batch = {"x": np.full(4, number, np.float32)}
            state, _ = compiled(state, batch, jax.random.key(number))
            found.append(float(state))
        return found

    assert results({"xla_embed_ir_in_executable": True}) == results(None)
    # By default, those of a CUDA graph.
    graph = {"xla_nonsense": True}
    monkeypatch.setattr(parallel, "cuda_graph_options", lambda device: graph)
    assert results({}) == results({"xla_embed_ir_in_executable": True})
    with pytest.raises(Exception, match="No such compile option: 'xla_nonsense'"):
        results(None)
    with pytest.raises(Exception, match="No such compile option: 'xla_nonsense'"):
        results({"xla_nonsense": True})
