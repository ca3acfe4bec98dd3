# SPDX-License-Identifier: Apache-2.0
"""Standard output and error that a command can always write to."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Stream:
    """A text stream that cannot end a command.

    After the first error of writing, nothing more is written. What the encoding does
    not have is written as an escape, such as "\\xb1".

    Args:
        stream: the stream itself; None where the program has none, as a daemon.

    Attributes:
        error: the first error of writing; None while there is none.
    """

    def __init__(self, stream: TextIO | None):
        if stream is None or getattr(stream, "closed", False):
            stream = io.StringIO()  # which nobody reads
        self._stream = stream
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, unless an earlier one could not be written."""
        self._try(self._write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless a text could not be written."""
        self._try(self._stream.flush)

    def _write(self, text):
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            escaped = text.encode(encoding, "backslashreplace").decode(encoding)
            self._stream.write(escaped)

    def _try(self, function, *arguments):
        if self.error is not None:
            return
        try:
            function(*arguments)
        except (OSError, ValueError) as error:  # ValueError: closed meanwhile
            self.error = error
            self._drop_buffer()

    def _drop_buffer(self):
        """Let what could not be written go, or Python would try again at its end."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # has no file
            descriptor = self._stream.fileno()
            before = os.dup(descriptor)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            try:
                self._stream.flush()
            finally:
                os.dup2(before, descriptor)
                os.close(before)
                os.close(null)


@contextlib.contextmanager
def always_writable() -> Iterator[Stream]:
    """Make standard output and error streams that cannot end a command.

    Yields:
        The output.
    """
    # Descriptors 0 to 2 are not for the run's files: XLA writes its warnings to 2.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield out
        finally:
            out.flush()
            err.flush()
