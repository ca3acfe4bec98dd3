# SPDX-License-Identifier: Apache-2.0
"""Measurements that are prepared in parallel and taken one at a time.

A child is a process that prepares its measurements, prints READY, and takes each when
it reads its name. `serve` is a child's part, `take_turns` that of the parent.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rn_jax.errors import first_line

READY = "READY"
_POLL = 0.1  # seconds between looks at a signal that may have come
_GRACE = 2.0  # seconds from SIGTERM to SIGKILL

Row = Mapping[str, Any]
Measure = Callable[[], Row]
Prepare = Callable[[], Measure]


# --- The child ------------------------------------------------------------------------


def serve(measurements: Mapping[str, Prepare]) -> None:
    """Prepare measurements, and take each when its name comes on standard input.

    Standard output is for the parent alone: what else is printed goes to stderr. An
    error is the row {"error": ...} of its measurement, and the others go on.

    Args:
        measurements: name -> function that prepares it and returns the function that
            takes it, which returns its row.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def answer(line):
            print(line, file=answers, flush=True)

        prepared, seconds = {}, {}
        for name, prepare in measurements.items():
            start = time.perf_counter()
            prepared[name] = _or_error(prepare)
            seconds[name] = time.perf_counter() - start
        answer(READY)
        for line in sys.stdin:
            name = line.rstrip("\n")
            found = prepared.pop(name)
            row = _or_error(found) if callable(found) else found
            answer(json.dumps({**row, "prepare_seconds": seconds[name]}))


def _or_error(call):
    try:
        return call()
    except Exception as error:  # of any library
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {first_line(error)}"}


# --- The parent -----------------------------------------------------------------------


def take_turns(
    turns: Mapping[str, str],
    command: Callable[[str], Sequence[str]],
    logs: Path,
    *,
    at_once: int,
    ready_by: float,
    end_by: float,
    turn_seconds: float,
    stop: object,
) -> Generator[tuple[str, Row], None, None]:
    """Yield the name and the row of each measurement, {"error": ...} if it failed.

    Children start in the order of their first turns. A child that is not ready in time
    is ended before the first turn, and each child after its last turn. None is left
    when this ends, however it ends.

    Args:
        turns: name of a measurement -> its child, in the order of turns.
        command: child -> its command line.
        logs: existing folder for what each child prints on stderr.
        at_once: number of children that prepare at the same time.
        ready_by: when the turns begin at the latest, as of `time.monotonic`.
        end_by: when the last turn ends at the latest. Children are gone some two
            seconds later.
        turn_seconds: longest time of a turn.
        stop: true once nothing more is to be done, such as a `StopSignal`.
    """
    names = list(dict.fromkeys(turns.values()))
    with contextlib.closing(_Children(command, logs, stop)) as children:
        children.prepare(names, at_once=at_once, until=min(ready_by, end_by))
        last_turn = {child: name for name, child in turns.items()}
        for name, child in turns.items():
            now = time.monotonic()
            if stop or now >= end_by:
                reason = "stopped before its turn" if stop else "no time was left"
                yield name, {"error": reason}
                continue
            yield name, children.take(child, name, min(now + turn_seconds, end_by))
            if last_turn[child] == name:
                children.end([child])


class _Children:
    """Processes that were started and not ended yet, and why others have no answer."""

    def __init__(self, command, logs, stop):
        self._command, self._logs, self._stop = command, logs, stop
        self._running: dict[str, subprocess.Popen] = {}
        self._failed: dict[str, str] = {}
        self._lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def prepare(self, names, *, at_once, until):
        """Start children, and wait until they are ready; end those that are not."""
        waiting, preparing = list(names), set[str]()
        while waiting or preparing:
            while waiting and len(preparing) < at_once:
                preparing.add(waiting[0])
                self._start(waiting.pop(0))
            found = self._next(until)
            if found is None:
                break
            if found[1] in (READY, ""):
                preparing.discard(found[0])
        self._failed |= dict.fromkeys([*waiting, *preparing], "not ready in time")
        self.end(preparing)

    def take(self, child, name, until):
        """Give a child its turn, and return its row."""
        if child not in self._failed:
            try:
                self._running[child].stdin.write(f"{name}\n")
                self._running[child].stdin.flush()
            except OSError:  # it has ended, which its last line will say
                pass
        while child not in self._failed:
            found = self._next(until)
            if found is None:
                self._failed[child] = "stopped" if self._stop else "took too long"
                self.end([child])
            elif found[0] == child and found[1]:
                try:
                    return json.loads(found[1])
                except ValueError:
                    return {"error": f"unreadable answer {found[1][:100]!r}"}
        return {"error": self._failed[child]}

    def end(self, names):
        """End children and all processes that they started."""
        ending = [self._running.pop(n) for n in [*names] if n in self._running]
        for process in ending:
            _signal(process, signal.SIGTERM)
        until = time.monotonic() + _GRACE
        for process in ending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, until - time.monotonic()))
            _signal(process, signal.SIGKILL)
            process.wait()
            with contextlib.suppress(OSError):  # of a name that it did not read
                process.stdin.close()

    def close(self):
        """End all children."""
        self.end(list(self._running))

    def _start(self, name):
        with (self._logs / f"{name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                self._command(name),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the parent, who ends them
            )
        self._running[name] = process
        threading.Thread(target=self._read, args=(name, process), daemon=True).start()

    def _read(self, name, process):
        with process.stdout:
            for line in process.stdout:
                self._lines.put((name, line.rstrip("\n")))
        self._lines.put((name, ""))  # it has ended

    def _next(self, until):
        """Return a child and its next line, "" at its end; None if there is none."""
        while not self._stop and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                name, line = self._lines.get(timeout=min(left, _POLL))
                if name not in self._running:
                    continue  # we ended it
                if not line:
                    code = self._running[name].wait()
                    self._failed[name] = f"ended with exit code {code}, see {name}.log"
                return name, line
        return None


def _signal(process, number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
