# SPDX-License-Identifier: Apache-2.0
"""A lock on a run's folder, so that two runs never write into the same one."""

import datetime
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable

from etils import epath

from rn_jax.errors import InputError

# Seconds between signs of life in the file, and without one until it counts as stale.
_REFRESH, _STALE = 60, 600


class Lock:
    """The file lock.json with host, process and time of whoever holds the folder.

    Processes of one machine are told apart by the kernel, which ends the lock of one
    that dies. For those of other machines, and in buckets, the time in the file counts,
    which is renewed every minute: ten minutes without make a lock stale.

    Args:
        folder: which is there.
        report: takes a sentence that the user should read.
    """

    def __init__(
        self, folder: epath.PathLike, *, report: Callable[[str], None] = print
    ):
        self._path = epath.Path(folder) / "lock.json"
        self._report = report
        self._since = time.time()
        self._file = None
        self._released = threading.Event()
        self._keeper = None

    def acquire(self) -> None:
        """Takes the lock, until `release`.

        Raises:
            InputError: another run has it.
            OSError: the file cannot be written.
        """
        if not self._is_remote():
            self._open_alone()
        holder = self._holder()
        if holder is not None:
            if self._is_alive(holder):
                self._close()
                raise self._refusal(holder)
            self._report(f"Took over the lock of {_name(holder)}, which has ended.")
        self._write()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def release(self) -> None:
        """Gives the lock back, if it was taken."""
        if self._keeper is None:
            return
        self._released.set()
        self._keeper.join()
        self._keeper = None
        self._path.unlink(missing_ok=True)
        self._close()

    def _is_remote(self):
        return "://" in os.fspath(self._path)

    def _open_alone(self):
        """Opens the file and locks it, or says who has it."""
        while True:
            file = open(self._path, "a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                raise self._refusal(self._holder()) from None
            # The one who had it may have removed the file since it was opened.
            if self._path.exists() and os.path.samestat(
                os.fstat(file.fileno()), os.stat(self._path)
            ):
                self._file = file
                return
            file.close()

    def _holder(self):
        try:
            holder = json.loads(self._path.read_text())
            return holder if {"host", "process", "renewed"} <= set(holder) else None
        except (OSError, ValueError, TypeError):  # not there, or not whole
            return None

    def _is_alive(self, holder):
        if holder["host"] == socket.gethostname() and self._file is not None:
            return False  # the kernel says so
        return time.time() - holder["renewed"] < _STALE

    def _refusal(self, holder):
        who = "another run" if holder is None else _name(holder)
        return InputError(
            f"{self._path.parent} is in use by {who}; wait for its end, stop it, or "
            "choose another --workdir."
        )

    def _keep(self):
        while not self._released.wait(_REFRESH):
            try:
                self._write()
            except OSError:
                pass  # a full disk is told by whoever writes what matters

    def _write(self):
        holder = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": datetime.datetime.fromtimestamp(self._since).isoformat(
                " ", "seconds"
            ),
            "renewed": time.time(),
        }
        text = json.dumps(holder) + "\n"
        if self._file is None:
            self._path.write_text(text)
            return
        self._file.truncate(0)
        self._file.write(text)
        self._file.flush()

    def _close(self):
        if self._file is not None:
            self._file.close()
            self._file = None


def _name(holder):
    return f"process {holder['process']} on {holder['host']} (since {holder['since']})"
