# SPDX-License-Identifier: Apache-2.0
"""The lock on a run's folder: who is refused, and whose lock is stale."""

import json
import os
import socket
import threading
import time

import pytest

from experiments.training.lock import Lock
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


def write(folder, host):
    holder = {"host": host, "process": 7, "since": "then", "renewed": time.time()}
    (folder / "lock.json").write_text(json.dumps(holder))


def test_holder_on_another_host_that_shows_life_is_respected(tmp_path):
    write(tmp_path, "elsewhere")
    renewing = threading.Timer(0.1, write, (tmp_path, "elsewhere"))
    renewing.start()
    said = []
    with pytest.raises(InputError, match="in use by process 7 on elsewhere"):
        Lock(tmp_path, report=said.append, refresh=20).acquire()
    assert said == [
        "Checking whether process 7 on elsewhere (since then) still holds this folder."
    ]
    renewing.join()
    assert json.loads((tmp_path / "lock.json").read_text())["process"] == 7
    Lock(tmp_path, report=said.append, refresh=0.02).acquire()  # it left no lock behind


def test_holder_on_another_host_that_does_not_is_stale(tmp_path):
    write(tmp_path, "elsewhere")
    said = []
    lock = Lock(tmp_path, report=said.append, refresh=0.02)
    lock.acquire()
    assert said[1] == (
        "Took over the lock of process 7 on elsewhere (since then), which has ended."
    )
    lock.release()


def test_process_of_this_host_that_died_is_not_waited_for(tmp_path):
    write(tmp_path, socket.gethostname())
    said = []
    lock = Lock(tmp_path, report=said.append)
    lock.acquire()
    assert len(said) == 1 and said[0].startswith("Took over the lock of process 7 on")
    assert json.loads((tmp_path / "lock.json").read_text())["process"] == os.getpid()
    lock.release()


def test_where_the_kernel_has_no_locks_signs_of_life_decide(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    first = Lock(tmp_path, report=lambda _: None, refresh=0.02)
    first.acquire()
    with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
        Lock(tmp_path, report=lambda _: None, refresh=2).acquire()
    first.release()
    assert not (tmp_path / "lock.json").exists()


def test_holder_changes_the_file_in_place(tmp_path):
    """So that others see it live, and the kernel's lock stays on the file."""
    lock = Lock(tmp_path, refresh=0.01)
    lock.acquire()
    file = tmp_path / "lock.json"
    before, inode = file.read_text(), file.stat().st_ino
    deadline = time.monotonic() + 30
    while file.read_text() == before:
        assert time.monotonic() < deadline
    assert file.stat().st_ino == inode
    lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "\0"])
def test_half_a_lock_is_none(tmp_path, text):
    (tmp_path / "lock.json").write_text(text)
    lock = Lock(tmp_path, report=lambda sentence: pytest.fail(sentence))
    lock.acquire()
    lock.release()
