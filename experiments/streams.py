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

    After the first error of writing, nothing more is written. Characters that the
    encoding lacks are written as escapes, such as "\\xb1".

    Args:
        stream: the stream itself; None if the program has none, as a daemon.

    Attributes:
        error: the first error of writing; None if there was none.
    """

    def __init__(self, stream: TextIO | None):
        if stream is None or getattr(stream, "closed", False):
            stream = io.StringIO()  # which nobody reads
        self._stream = stream
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, unless an earlier one failed."""
        self._try(self._write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless an earlier write failed."""
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
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.error = error
            self._drop_buffer()

    def _drop_buffer(self):
        """Drop what could not be written; Python would try again when it exits."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # no file
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
    # Keep descriptors 0 to 2 from the run's files: XLA writes its warnings to 2.
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
