# SPDX-License-Identifier: Apache-2.0
"""The training command in forked processes, which have everything imported already.

A run that is killed fifty times would spend most of its time on imports. The server
imports what the command needs, but never starts a JAX backend; every run is its fork.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from driver import ROOT, WITH_TINY

_SERVER = f"""{WITH_TINY}
import json, os, resource
import sklearn.datasets  # which digits come from
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        if job["file_size"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"],) * 2)
        sys.argv = ["run", *job["argv"]]
        sys.exit(run.main())
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Server:
    """Starts runs one at a time."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _SERVER],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def start(self, argv: list[str], *, file_size: int | None = None) -> "Run":
        """A run with these arguments, and with a limit on the bytes of each file."""
        job = {
            "argv": argv,
            "file_size": file_size,
            "out": str(self._folder / "out"),
            "err": str(self._folder / "err"),
        }
        for name in ("out", "err"):  # of the run before
            (self._folder / name).write_text("")
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Run(int(self._line()), self._line, self._folder)

    def run(self, argv: list[str], **limits) -> "Run":
        """A run that has ended."""
        run = self.start(argv, **limits)
        run.wait()
        return run

    def close(self) -> None:
        """Ends the server."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _line(self):
        return self._process.stdout.readline().strip()


class Run:
    """A run in a process of its own.

    Attributes:
        pid: of the process.
        code: its exit code once it has ended; -9 if it was killed.
    """

    def __init__(self, pid, line, folder):
        self.pid, self.code = pid, None
        self._line, self._folder = line, folder

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, which may come too late."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def wait(self) -> int:
        """The exit code."""
        if self.code is None:
            self.code = int(self._line())
        return self.code

    @property
    def out(self) -> str:
        """What it has printed."""
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        """What it has printed on standard error."""
        return (self._folder / "err").read_text()
