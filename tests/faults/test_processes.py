# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run, on this machine: as one, and when one of them dies."""

import re
import resource
import shutil
import signal
import socket
import time

import driver
import numpy as np
import pytest
from driver import arguments, final_state, lines

from experiments.training.lock import Lock

pytestmark = [pytest.mark.slow, pytest.mark.faults]

KIND = "one of two processes dies"
HEARTBEAT = 10  # seconds
OPTIONS = (
    "--config.stochastic_depth={'last_survival': 0.5}",
    "--config.protocol=45k5k",
    "--config.augment=True",
    "--config.epochs=4",
    "--config.checkpoint_every_steps=3",
    "--config.log_every_steps=1",
)


def one(workdir, *options):
    """A run of one process."""
    process = driver.start(arguments(workdir, *OPTIONS, *options))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def start(workdir, *options, last=()):
    """The two processes of a run, with a device each; `last` are the second's own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        driver.start(
            arguments(
                workdir,
                *OPTIONS,
                f"--coordinator=localhost:{port}",
                "--num_processes=2",
                f"--process_id={index}",
                f"--heartbeat_timeout={HEARTBEAT}",
                *options,
                *(last if index else ()),
            )
        )
        for index in range(2)
    ]


def ends(processes, codes):
    found = [process.communicate(timeout=600) for process in processes]
    assert [p.returncode for p in processes] == codes, found
    return found


def checkpoint_is_there(workdir, step, processes):
    deadline = time.monotonic() + 500
    while not [
        path
        for path in workdir.glob("checkpoints/*")
        if path.name.isdigit() and int(path.name) >= step
    ]:
        assert time.monotonic() < deadline
        assert [p.poll() for p in processes] == [None] * len(processes), [
            p.communicate() for p in processes if p.poll() is not None
        ]
        time.sleep(0.01)


def assert_close(workdir, whole):
    """Equal but for the rounding of sums over other numbers of devices.

    After 20 steps rounding alone has been seen to move momentum by 2e-5.
    """
    a, b = final_state(workdir), final_state(whole)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=5e-5, err_msg=name)
    for x, y in zip(lines(workdir), lines(whole), strict=True):
        assert x.keys() == y.keys()
        assert (x["step"], x["open_blocks"]) == (y["step"], y["open_blocks"])
        np.testing.assert_allclose(x["train_loss"], y["train_loss"], rtol=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of one process with two devices."""
    workdir = tmp_path_factory.mktemp("one") / "whole"
    one(workdir)
    return workdir


@pytest.mark.parametrize(
    ("mode", "on_device"), [("pmap", False), ("pmap", True), ("shard_map", True)]
)
def test_two_processes_are_as_one(whole, tmp_path, mode, on_device):
    """The first one writes and prints; a signal to the second stops both at a step.

    What they began is ended by two, or by one on one device or on four.
    """
    workdir = tmp_path / "two"
    options = f"--config.parallelism={mode}", f"--config.data_on_device={on_device}"
    processes = start(workdir, *options)
    checkpoint_is_there(workdir, 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    (out, err), (other_out, other_err) = ends(processes, [75, 75])
    step = re.search(r"saved at step (\d+) of 20; the same command", err)[1]
    assert f"saved at step {step} of 20" in other_err
    assert "a signal to another process" in err and "SIGTERM" in other_err
    assert (workdir / "checkpoints" / step).exists()
    assert "Run folder" in out and "Run folder" not in other_out
    if not on_device:
        for devices in (1, 4):
            ended_by_one = shutil.copytree(workdir, tmp_path / f"one{devices}")
            out = one(ended_by_one, f"--config.num_devices={devices}")
            assert f"Resumed at step {step} of 20." in out
            assert_close(ended_by_one, whole)
    (out, _), (other_out, _) = ends(start(workdir, *options), [0, 0])
    assert f"Resumed at step {step} of 20." in out
    assert "Test error" in out and "Test error" not in other_out
    assert_close(workdir, whole)


def ends_without(other, index):
    """The other process ends in time; returns its exit code."""
    began = time.monotonic()
    _, err = other.communicate(timeout=600)
    assert time.monotonic() - began < 3 * HEARTBEAT
    # JAX may end a process before it does so itself, if that takes part in nothing.
    assert other.returncode in (2, -signal.SIGABRT)
    if other.returncode == 2:
        assert f"rn_jax: Process {index} of 2 cannot continue (" in err
    return other.returncode


def test_if_one_is_killed_the_other_ends_and_both_go_on(whole, tmp_path, faults):
    workdir = tmp_path / "two"
    for victim in (0, 1):
        processes = start(workdir)
        checkpoint_is_there(workdir, 3 + 6 * victim, processes)
        processes[victim].kill()
        code = ends_without(processes[1 - victim], 1 - victim)
        assert code == 2 or victim == 0
        processes[victim].communicate()
    ends(start(workdir), [0, 0])
    assert_close(workdir, whole)
    faults(KIND, 2)


def test_if_one_hangs_the_other_ends(tmp_path, faults):
    """Its connections stay open: nothing but its heartbeat is missing."""
    workdir = tmp_path / "two"
    processes = start(workdir)
    checkpoint_is_there(workdir, 3, processes)
    processes[1].send_signal(signal.SIGSTOP)
    ends_without(processes[0], 0)
    processes[1].kill()
    processes[1].communicate()
    faults("one of two processes hangs")


def test_first_process_cannot_write(tmp_path, faults):
    """It ends by itself, and so does the other, which would wait for it in vain."""
    workdir = tmp_path / "two"
    processes = start(workdir)
    checkpoint_is_there(workdir, 3, processes)
    resource.prlimit(processes[0].pid, resource.RLIMIT_FSIZE, (100, 100))
    _, err = processes[0].communicate(timeout=600)
    assert processes[0].returncode == 2
    assert "cannot be written to" in err and "the same command" in err
    ends_without(processes[1], 1)
    faults("no room for the first of two processes")


def test_folder_in_use_is_refused_to_both(tmp_path, faults):
    workdir = tmp_path / "two"
    workdir.mkdir()
    lock = Lock(workdir)
    lock.acquire()
    (_, err), (_, other_err) = ends(start(workdir), [2, 2])
    assert f"rn_jax: {workdir} is in use by process" in err
    assert "rn_jax: Process 0 of 2 failed and reports why.\n" in other_err
    lock.release()
    faults("two runs in a folder")


def test_bad_input_in_one_process_ends_all(tmp_path, faults):
    workdir = tmp_path / "two"
    processes = start(workdir, last=["--config.batch_size=241"])
    (_, err), (_, other_err) = ends(processes, [2, 2])
    assert "rn_jax: Process 1 of 2 failed and reports why.\n" in err
    assert "batch_size 241 is not divisible by 2 devices: use 242, for " in other_err
    assert not (workdir / "config.json").exists()
    faults("bad input in one of two processes")
