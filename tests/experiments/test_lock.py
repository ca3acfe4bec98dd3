# SPDX-License-Identifier: Apache-2.0
"""The lock on a run's folder: who is refused, and whose lock is stale."""

import json
import os
import socket
import time

import pytest

from experiments.lock import Lock
from rn_jax import InputError


def test_second_is_refused_until_the_first_gives_it_back(tmp_path):
    first, second = Lock(tmp_path), Lock(tmp_path)
    first.acquire()
    holder = json.loads((tmp_path / "lock.json").read_text())
    assert (holder["host"], holder["process"]) == (socket.gethostname(), os.getpid())
    assert abs(holder["renewed"] - time.time()) < 60
    in_use = rf"in use by process {os.getpid()} on {socket.gethostname()} \(since 2"
    with pytest.raises(InputError, match=in_use):
        second.acquire()
    assert (tmp_path / "lock.json").exists()  # the first one's still
    first.release()
    assert not (tmp_path / "lock.json").exists()
    second.acquire()
    second.release()
    second.release()  # twice is no error


def write(folder, host, age):
    holder = {"host": host, "process": 7, "since": "then", "renewed": time.time() - age}
    (folder / "lock.json").write_text(json.dumps(holder))


def test_fresh_lock_of_another_host_is_respected(tmp_path):
    write(tmp_path, "elsewhere", age=300)
    with pytest.raises(InputError, match="in use by process 7 on elsewhere"):
        Lock(tmp_path).acquire()
    assert json.loads((tmp_path / "lock.json").read_text())["process"] == 7


@pytest.mark.parametrize(
    ("host", "age"), [("elsewhere", 700), (socket.gethostname(), 1)]
)
def test_stale_locks_are_taken_over(tmp_path, host, age):
    """Of another host without a sign of life; of a process that died on this one."""
    write(tmp_path, host, age)
    said = []
    lock = Lock(tmp_path, report=said.append)
    lock.acquire()
    assert said == [
        f"Took over the lock of process 7 on {host} (since then), which has ended."
    ]
    assert json.loads((tmp_path / "lock.json").read_text())["process"] == os.getpid()
    lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "\0"])
def test_half_a_lock_is_none(tmp_path, text):
    (tmp_path / "lock.json").write_text(text)
    lock = Lock(tmp_path, report=lambda sentence: pytest.fail(sentence))
    lock.acquire()
    lock.release()
