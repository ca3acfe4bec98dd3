# SPDX-License-Identifier: Apache-2.0
"""What the commands share: options, the line as it was typed, exit codes."""

import argparse
import contextlib
import datetime
import importlib
import inspect
import logging as stdlib_logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from configs.default import FIELDS
from experiments import streams
from rn_jax import filesystem, parallel
from rn_jax.errors import InputError, unknown_name

# The modules that are commands.
COMMANDS = (
    *("analyze", "evaluate", "export", "predict"),
    *("report", "reproduce", "run", "sweep"),
)

# What `ast.literal_eval` raises for text that is no literal.
NOT_A_LITERAL = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)

# Characters of a sentence on stderr, which may quote what was typed.
_LONGEST = 4000


class Parser(argparse.ArgumentParser):
    """A command's own options, with one sentence for what it cannot take.

    Args:
        doc: the command's docstring: a sentence, an empty line, the usage. Under
            python -OO it is None, and argparse writes a usage of its own.
        function: what the command calls; its keywords are the options, and have its
            defaults. A keyword `command` is given the line that was typed.
    """

    def __init__(self, doc: str | None, function: Callable | None = None):
        first, _, usage = (doc or "").partition("\n\n")
        super().__init__(
            description=first,
            usage=usage or None,
            allow_abbrev=False,
            argument_default=None if function is None else argparse.SUPPRESS,
        )
        self._function = function

    def call(self, argv: Sequence[str] | None, *, interrupted: str) -> int:
        """Call the function with the options in `argv`, by default this process's.

        Returns the exit code. `interrupted` is the sentence after Ctrl-C.
        """
        typed = sys.argv[1:] if argv is None else argv
        function = self._function
        assert function is not None

        def run():
            options = vars(self.parse_args(typed))
            if "command" in inspect.signature(function).parameters:
                options["command"] = as_typed(function.__name__, typed)
            function(**options)

        return exit_code(run, interrupted=interrupted)

    def error(self, message):
        """What argparse has to say, as an `InputError`."""
        raise InputError(
            f"{message[0].upper()}{message[1:]}; --help shows all options."
        )

    def add_path(self, name: str, **settings: Any) -> None:
        """Add an option for a path, which begins with "~" or "~user" also after "="."""
        self.add_argument(name, type=path, **settings)

    def parse_with_config(
        self, argv: Sequence[str]
    ) -> tuple[argparse.Namespace, list[str]]:
        """The command's own options, and those of the config for `load_config`.

        Raises:
            InputError: an option that is neither.
        """
        options, rest = self.parse_known_args(argv)
        for argument in rest:
            name = argument.partition("=")[0]
            if name.startswith("-") and name.lstrip("-") in FIELDS:
                raise InputError(
                    f"{name} is a field of the config: --config.{argument.lstrip('-')}."
                )
            if re.match("--?[a-zA-Z]", name) and not re.match(
                r"--?(no)?config(\.|$)", name
            ):
                known = [*self._option_string_actions, "--config"]
                raise unknown_name("option", name, known)
        return options, rest


def at_least(least: int, **values: int | None) -> None:
    """Check values of options, by name.

    Raises:
        InputError: one is given, and below `least`.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}, not {value}.")


def expanded(path: str) -> str:
    """Return a path that was typed, with "~" and "~user" as home folders.

    Raises:
        InputError: no file can have this path.
    """
    path = os.path.expanduser(path)
    filesystem.check(path)
    return path


def path(text: str) -> str:
    """Return `expanded(text)`; for argparse, as the type of an option."""
    try:
        return expanded(text)
    except InputError as error:  # argparse takes it for a type's ValueError
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def join_processes(options: argparse.Namespace) -> None:
    """Joins the other processes of a run, as the options say.

    Raises:
        InputError: as `parallel.join_processes`; or several processes without a common
            folder.
    """
    several = parallel.join_processes(
        coordinator=options.coordinator,
        num_processes=options.num_processes,
        process_id=options.process_id,
        heartbeat_timeout=options.heartbeat_timeout,
    )
    if several and options.workdir is None:
        raise InputError(
            "Several processes need the same --workdir, on a file system that all of "
            "them see."
        )


def as_typed(name: str, argv: Sequence[str]) -> str:
    """The line that calls a command again; that of the script, where one called it.

    Args:
        name: of COMMANDS.
        argv: the command's arguments.
    """
    typed = sys.orig_argv[1:]
    # Called with others than typed, or by a program without a file.
    if not argv or typed[-len(argv) :] != [*argv] or sys.argv[:1] in (["-c"], ["-"]):
        typed = ["-m", f"experiments.{name}", *argv]
    return " ".join(map(filesystem.quoted, ["python", *typed]))


def of_script() -> int:
    """Runs the command that a script's first argument names; returns its exit code.

    For scripts that register networks or data sets of their own before.
    """

    def check():
        if not name or name.startswith("-"):
            raise InputError(f"Name a command first: {', '.join(COMMANDS)}.")
        if name not in COMMANDS:
            raise unknown_name("command", name, COMMANDS)

    name = "".join(sys.argv[1:2])
    if code := exit_code(check):
        return code
    del sys.argv[1]
    return importlib.import_module(f"experiments.{name}").main()


def exit_code(
    command: Callable[[], None],
    *,
    interrupted: str = "Interrupted before the first step.",
) -> int:
    """Runs a command and returns its exit code, with one sentence if that is not 0.

    It is 2 after bad input or Ctrl-C, and 75 (that of BSD's sysexits for "try again")
    after a signal to a run, which is saved and to be started again. A command finishes
    its work even if standard output is closed. If its output cannot be stored, it says
    so at the end and the exit code is 2.
    """
    logging.set_verbosity(logging.FATAL)  # what Orbax says of errors, we say too
    stdlib_logging.getLogger("asyncio").setLevel(stdlib_logging.CRITICAL)
    with streams.always_writable() as output:
        code = _exit_code(command, interrupted)
        output.flush()
        closed = (type(None), BrokenPipeError, ValueError)  # nobody wants to read it
        if not isinstance(output.error, closed):
            _say(
                f"Standard output cannot be written to ({output.error}): what the "
                "command prints is lost, and nothing else. Make room, or name another "
                "file."
            )
            return code or 2
    return code


def _exit_code(command, interrupted):
    try:
        with _quiet_after_a_failed_write():
            command()
    except InputError as error:
        _say(str(error))
        if isinstance(error, parallel.AloneError):
            # On the usual way out JAX waits for the others, and they may wait for this.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        _say(interrupted)
        return 2
    except SystemExit as end:  # of argparse after --help
        return end.code
    return 0


def _say(sentence):
    print(f"rn_jax: {_printable(sentence)}", file=sys.stderr)


def _printable(text):
    """One line, not endless, without what a terminal would take for commands."""
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text.strip()
    )
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


@contextlib.contextmanager
def _quiet_after_a_failed_write():
    """Lets what follows a failed write in TensorStore, which has a sentence, be unsaid.

    Its other writes end later, find Orbax's event loop closed, and would each print so.
    """
    before = sys.unraisablehook

    def hook(found):
        if str(found.exc_value) != "Event loop is closed":
            before(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def new_workdir(name: str) -> str:
    """A folder under runs/ named by what runs there and the time."""
    time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return os.path.join("runs", f"{name}-{time}")
