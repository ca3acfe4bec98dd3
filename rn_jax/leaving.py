# SPDX-License-Identifier: Apache-2.0
"""SIGINT (Ctrl-C) and SIGTERM: a command ends at once, wherever it is.

Python runs a handler of its own only between two bytecodes of the main thread, so not
before XLA has compiled a program, and unwinding the stack then ends the interpreter
while XLA's threads work. Here a thread of its own reads the signals and ends the
process, which has nothing to lose: files are replaced as a whole, and a run resumes
from its checkpoint. Only the training loop holds a signal, to save first; it may then
be compiling again, so a second signal ends the process all the same.

This module imports nothing but the standard library, so that it works while the
others are imported.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

# Of BSD's sysexits: "try again".
EXIT_CODE = 75

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds to wait for a stream that nobody reads.
_PATIENCE = 1.0

# Seconds after a signal in which others count as the same one: `timeout` and shells
# send it to a process and to its group.
_SAME = 1.0

_watching = False
_sentences = ["Interrupted before the command began."]

# While it has elements, they handle a first signal, and only a second ends the process.
HOLDERS: set[object] = set()

# Functions that are called when a signal ends the process.
AT_END: set[Callable[[], object]] = set()


def watch() -> None:
    """End this process at once on a signal, from now on.

    For a process that is a command's alone, not for a program that calls one. It has no
    effect outside the main thread, which alone can handle signals.
    """
    global _watching
    if threading.current_thread() is not threading.main_thread():
        return
    if not _watching:
        _watching = True
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        threading.Thread(target=_follow, args=[reading], daemon=True).start()
        # Python's part of the handler, in C, writes the number of each signal here.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:  # also after `ended`
        signal.signal(number, lambda number, frame: None)


def ended() -> None:
    """Ignore signals from now on: the command has ended, and its exit code is known."""
    for number in SIGNALS if _watching else ():
        signal.signal(number, signal.SIG_IGN)


def _follow(reading):
    first = math.inf
    while numbers := os.read(reading, 1):
        if numbers[0] in SIGNALS:
            if not HOLDERS or time.monotonic() > first + _SAME:
                _leave()
            first = min(first, time.monotonic())


def _leave():
    try:
        # In a thread, since whoever writes to a stream has locked it.
        printing = threading.Thread(target=_say, daemon=True)
        printing.start()
        printing.join(_PATIENCE)
        for function in list(AT_END):
            with contextlib.suppress(Exception):
                function()
    finally:
        os._exit(EXIT_CODE)


def _say():
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        # sys.stderr is redirected while a checkpoint is read.
        stderr = sys.__stderr__ or sys.stderr
        after_bar = "\n" if stderr.isatty() else ""
        print(f"{after_bar}rn_jax: {_sentences[-1]}", file=stderr, flush=True)


@contextlib.contextmanager
def saying(sentence: str) -> Iterator[None]:
    """Make this the sentence with which a signal ends the process in the context."""
    _sentences.append(sentence)
    try:
        yield
    finally:
        _sentences.remove(sentence)
