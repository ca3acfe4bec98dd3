# SPDX-License-Identifier: Apache-2.0
"""A lock on a run's folder, so that two runs never write into the same one."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import IO

from etils import epath

from rn_jax import leaving
from rn_jax.errors import InputError
from rn_jax.filesystem import is_remote

# Seconds between renewals of the file.
_REFRESH = 60


class Lock:
    """The file lock.json with host, process and time of the process that has the lock.

    Between processes of one machine the kernel decides, and it releases the lock of a
    process that dies. A holder on another machine, or of a folder in a bucket, renews
    the file every minute; after two and a half minutes without a change, the lock is
    stale.

    Args:
        folder: an existing folder.
        report: called with a sentence that the user should read.
        refresh: seconds between renewals of the file.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        report: Callable[[str], None] = print,
        refresh: float = _REFRESH,
    ):
        self._path = epath.Path(folder) / "lock.json"
        self._report, self._refresh = report, refresh
        self._since = datetime.datetime.now().isoformat(" ", "seconds")
        self._file: IO[str] | None = None
        self._released = threading.Event()
        self._keeper: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, until `release`.

        Raises:
            InputError: another run has the lock.
            OSError: the file cannot be written.
        """
        by_kernel = not is_remote(self._path) and self._open_alone()
        try:
            holder = self._holder()
            if holder is not None:
                here = holder["host"] == socket.gethostname()
                if not (by_kernel and here) and self._shows_life(holder):
                    raise self._refusal(holder)
                self._report(f"Took over the lock of {_name(holder)}, which has ended.")
            leaving.AT_END.add(self._unlink)
            self._write()
        except BaseException:
            leaving.AT_END.discard(self._unlink)
            self._close()
            raise
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def release(self) -> None:
        """Release the lock, if it was taken."""
        if self._keeper is None:
            return
        self._released.set()
        self._keeper.join()
        self._keeper = None
        self._unlink()
        leaving.AT_END.discard(self._unlink)
        self._close()

    def _unlink(self):
        self._path.unlink(missing_ok=True)

    def _open_alone(self):
        """Open the file and lock it; return False if the file system has no locks.

        Raises:
            InputError: a process of this machine has the lock.
        """
        while True:
            file = open(self._path, "r+", opener=_or_new)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise self._refusal(self._holder()) from None
            except OSError:
                file.close()
                return False
            # Its last holder may have removed the file since it was opened.
            if self._path.exists() and os.path.samestat(
                os.fstat(file.fileno()), os.stat(self._path)
            ):
                self._file = file
                return True
            file.close()

    def _holder(self):
        try:
            holder = json.loads(self._path.read_bytes())
            return holder if {"host", "process", "since"} <= set(holder) else None
        except (OSError, ValueError, TypeError):  # missing or incomplete
            return None

    def _shows_life(self, holder):
        self._report(f"Checking whether {_name(holder)} still holds this folder.")
        end = time.monotonic() + 2.5 * self._refresh
        while time.monotonic() < end:
            time.sleep(self._refresh / 20)
            if self._holder() != holder:
                return True
        return False

    def _refusal(self, holder):
        who = "another run" if holder is None else _name(holder)
        return InputError(
            f"{self._path.parent} is in use by {who}; wait until it ends, stop it, or "
            "choose another folder (--workdir)."
        )

    def _keep(self):
        while not self._released.wait(self._refresh):
            with contextlib.suppress(OSError):  # the run reports a full disk
                self._write()

    def _write(self):
        holder = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": self._since,
            "renewed": time.time(),
        }
        text = json.dumps(holder).ljust(511) + "\n"  # of constant length
        if self._file is None:
            self._path.write_bytes(text.encode())
            return
        # Written over the old text: the file is never empty or another one.
        os.pwrite(self._file.fileno(), text.encode(), 0)
        os.truncate(self._file.fileno(), len(text))

    def _close(self):
        if self._file is not None:
            self._file.close()
            self._file = None


def _or_new(path, flags):
    return os.open(path, flags | os.O_CREAT, 0o666)


def _name(holder):
    return f"process {holder['process']} on {holder['host']} (since {holder['since']})"
