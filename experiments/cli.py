# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the commands: options, the command line, exit codes."""

import argparse
import ast
import contextlib
import dataclasses
import datetime
import importlib
import inspect
import logging as stdlib_logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Annotated, Union, get_args, get_origin, get_type_hints

from absl import logging
from etils import epath

from configs.default import ALIASES, FIELDS
from experiments import streams
from rn_jax import commands, filesystem, leaving, parallel, startup
from rn_jax.errors import InputError, unknown_name

# The modules that are commands.
COMMANDS = (
    *("analyze", "claims", "evaluate", "export", "predict"),
    *("report", "reproduce", "run", "sweep"),
)

# What `ast.literal_eval` raises for text that is not a literal.
NOT_A_LITERAL = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)

# Most characters of an error on stderr, which may quote the command line.
_LONGEST = 4000


class Parser(argparse.ArgumentParser):
    """The options of a command, which are the keywords of its function.

    An option has its keyword's default, the type in its annotation and the help in the
    docstring's "Args". `Annotated` adds a function that parses the text, or a dict of
    settings of `add_argument` and "flag", the option's name if it differs. A sequence
    without a default is positional. A keyword `arguments` receives the config and its
    fields, for `load_config`, and a keyword `command` the command line. A keyword
    `resumed_by` is for programs, and has no option. A keyword that is a dataclass has
    an option for each of its fields, with the help in the "Attributes" of its
    docstring.

    Args:
        doc: the command's docstring: a sentence, an empty line, the usage. Under
            python -OO it is None, and argparse writes a usage of its own.
        function: the function to call.
        epilog: text at the end of --help.

    Attributes:
        options: the command's own options in the order of --help.
    """

    def __init__(self, doc: str | None, function: Callable, epilog: str | None = None):
        first, _, usage = (doc or "").partition("\n\n")
        super().__init__(
            description=first,
            usage=as_called(usage) or None,
            epilog=epilog,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self.options: list[argparse.Action] = []
        self._function = function
        self._groups: dict[str, type] = {}
        hints = get_type_hints(function, include_extras=True)
        helps = _helps(function, "Args")
        for name, keyword in inspect.signature(function).parameters.items():
            if name in ("arguments", "command", "resumed_by"):
                continue
            if dataclasses.is_dataclass(hints[name]):
                self._add_group(name, hints[name])
            else:
                text = helps.get(name, "")
                self._add(name, hints[name], keyword.default, text)

    def _add_group(self, name, group):
        """Add the options of a dataclass."""
        self._groups[name] = group
        hints = get_type_hints(group, include_extras=True)
        helps = _helps(group, "Attributes")
        for field in dataclasses.fields(group):
            self._add(
                field.name, hints[field.name], field.default, helps.get(field.name, "")
            )

    def _add(self, name, hint, default, text):
        settings = _settings(hint)
        text = re.sub(r"\bNone\b( for|:)", "default:", text)
        if default != () and type(default) in (int, float, str, tuple):
            text = f"{text.strip().rstrip('.')} (default: {default})"
        settings.setdefault("help", " ".join(text.split()).replace("%", "%%"))
        flag = settings.pop("flag", f"--{name}")
        if default is not inspect.Parameter.empty:
            option = self.add_argument(flag, dest=name, **settings)
        elif get_origin(hint) is Sequence:
            settings |= {"nargs": "+", "metavar": name[:-1].upper()}
            option = self.add_argument(name, **settings)
        else:
            option = self.add_argument(flag, required=True, **settings)
        self.options.append(option)

    def call(self, argv: Sequence[str] | None, *, interrupted: str) -> int:
        """Call the function with the options in `argv`, by default this process's.

        Returns the exit code. `interrupted` is the sentence after Ctrl-C or SIGTERM.
        """
        typed = sys.argv[1:] if argv is None else argv
        keywords = inspect.signature(self._function).parameters

        def run():
            if "arguments" in keywords:
                options, rest = self.parse_with_config(typed)
                options.arguments = rest
            else:
                options = self.parse_args(typed)
            values = vars(options)
            for name, group in self._groups.items():
                fields = {f.name for f in dataclasses.fields(group)} & values.keys()
                values[name] = group(**{field: values.pop(field) for field in fields})
            if "command" in keywords:
                values["command"] = as_typed(self._function.__name__, typed)
            self._function(**values)

        if argv is not None:  # of a program, which handles signals itself
            return exit_code(run, interrupted=interrupted)
        leaving.watch()
        code = exit_code(run, interrupted=interrupted)
        leaving.ended()
        return code

    def error(self, message):
        """Raise argparse's error as an `InputError`."""
        raise InputError(
            f"{message[0].upper()}{message[1:]}; --help shows all options."
        )

    def parse_with_config(
        self, argv: Sequence[str]
    ) -> tuple[argparse.Namespace, list[str]]:
        """Return the command's own options, and those of the config for `load_config`.

        The latter are written in full: CONFIG as --config=CONFIG, and --FIELD=VALUE as
        --config.FIELD=VALUE.

        Raises:
            InputError: an option is neither, or there are two configs.
        """
        options, rest = self.parse_known_args(argv)
        found: list[str] = []
        words, is_value = [], False
        for argument in rest:
            option, equals, _ = argument.partition("=")
            if not re.match("--?[a-zA-Z]", option):  # a word or a negative number
                if not is_value and not option.startswith("-"):
                    words.append(argument)
                    argument = f"--config={argument}"
                is_value = False
            else:
                no, field = self._field(option)
                argument = f"--{no}{field}{argument[len(option) :]}"
                is_value = not (equals or no or _is_bool(field))
            found.append(argument)
        if words and sum(re.match("--?config(=|$)", a) is not None for a in found) > 1:
            raise InputError(
                f"Unexpected argument {words[-1]!r}: one config is named already, and "
                "options begin with --."
            )
        return options, found

    def _field(self, option):
        """Return "no" or "" and "config" or "config.FIELD", of an option of the config.

        Raises:
            InputError: it is none.
        """
        fields = {*FIELDS, *ALIASES}
        no, name = "", option.lstrip("-")
        if name.startswith("no") and name.partition(".")[0] not in fields:
            no, name = "no", name[2:]
        if name.partition(".")[0] in fields:
            name = f"config.{name}"
        if name.partition(".")[0] != "config":
            known = [*self._option_string_actions, "--config"]
            raise unknown_name("option", option, [*known, *(f"--{f}" for f in fields)])
        return no, name


def _is_bool(option):
    """Return whether a field, "config.FIELD", needs no value."""
    field = FIELDS.get(option.removeprefix("config."))
    return field is not None and field.kind is bool


def _helps(documented, section):
    """Return the texts by name in a section of a docstring."""
    text = inspect.getdoc(documented) or ""
    text = text.partition(f"{section}:\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"(?ms)^ {4}(\w+): (.+?)(?=\n {4}\w|\Z)", text))


def _settings(hint):
    """Return the settings of `add_argument` for an annotation."""
    if get_origin(hint) is Annotated:
        added = hint.__metadata__[0]
        settings = {"type": added} if callable(added) else dict(added)
        if "type" in settings:
            settings["type"] = _for_argparse(settings["type"])
        return settings
    if hint is bool:
        return {"action": "store_true"}
    if hint in (int, float):
        return {"type": hint}
    parts = get_args(hint) if get_origin(hint) in (Sequence, Union, UnionType) else ()
    return {key: value for part in parts for key, value in _settings(part).items()}


def _for_argparse(parse):
    """Return the function such that argparse keeps the sentence of its `InputError`."""

    def parsed(text):
        try:
            return parse(text)
        except InputError as error:
            raise argparse.ArgumentError(None, str(error).rstrip(".")) from None

    return parsed


def at_least(least: int, **values: int | None) -> None:
    """Check values of options, by name.

    Raises:
        InputError: one is given and is below `least`.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}, not {value}.")


# Annotations of options: a path, in which "~" and "~user" are expanded.
Path = Annotated[str, filesystem.expanded]
AnyPath = Annotated[epath.PathLike, filesystem.expanded]


def as_typed(name: str, argv: Sequence[str]) -> str:
    """Return the line that calls one of COMMANDS, or the script around it, again."""
    typed = sys.orig_argv[1:]
    # Called with other arguments, or by a program without a file.
    if not argv or typed[-len(argv) :] != [*argv] or sys.argv[:1] in (["-c"], ["-"]):
        typed = [*as_called(f"python -m experiments.{name}").split(), *argv]
    elif os.path.basename(typed[0]) == startup.CONSOLE:
        typed = [startup.CONSOLE, *typed[1:]]
    else:
        typed = ["python", *typed]
    return " ".join(map(filesystem.quoted, typed))


def as_called(text: str, *, on_page: bool = False) -> str:
    """Return a text with the commands' names as they can be typed here.

    They are "rn-jax NAME" instead of "python -m experiments.NAME" in a process started
    as `rn-jax`, and where the package is installed from a wheel. A page that is kept
    does not depend on the process: with `on_page`, only the latter counts.
    """
    started = startup.in_console_script() and not on_page
    if started or commands.FOLDER.is_dir():
        return text.replace("python -m experiments.", f"{startup.CONSOLE} ")
    return text


def of_script() -> int:
    """Run the command that a script's first argument names; return its exit code.

    `rn_jax.commands.main` calls it.
    """

    def load():
        if not name or name.startswith("-"):
            raise InputError(f"Name a command first: {', '.join(COMMANDS)}.")
        if name not in COMMANDS:
            raise unknown_name("command", name, COMMANDS)
        with commands.extra_needed():
            importlib.import_module(f"experiments.{name}")

    leaving.watch()
    name = "".join(sys.argv[1:2])
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if code := exit_code(load):
        return code
    del sys.argv[1]
    return sys.modules[f"experiments.{name}"].main()


def _overview():
    """Return the commands, each with the first sentence of its module."""
    script = os.path.basename(sys.argv[0])
    lines = [f"usage: {script} COMMAND ...; {script} COMMAND --help lists its options."]
    for name in COMMANDS:
        file = os.path.join(os.path.dirname(__file__), f"{name}.py")
        with open(file, encoding="utf-8") as source:
            text = ast.get_docstring(ast.parse(source.read())) or ""
        lines.append(f"  {name:<10} {text.partition(chr(10))[0]}")
    return "\n".join(lines)


def exit_code(
    command: Callable[[], None],
    *,
    interrupted: str = "Interrupted before the first step.",
) -> int:
    """Run a command and return its exit code, with one sentence if that is not 0.

    The exit code is 2 after bad input, and 75 (BSD's sysexits for "try again") after
    Ctrl-C or SIGTERM; the same command continues. A command finishes its work even if
    standard output is closed. If its output cannot be stored, it reports that at the
    end, and the exit code is 2.
    """
    logging.set_verbosity(logging.FATAL)  # Orbax logs the errors that we report
    stdlib_logging.getLogger("asyncio").setLevel(stdlib_logging.CRITICAL)
    with streams.always_writable() as output, leaving.saying(interrupted):
        code = _exit_code(command, interrupted)
        output.flush()
        closed = (type(None), BrokenPipeError, ValueError)  # nobody reads it
        if not isinstance(output.error, closed):
            _say(
                f"Standard output cannot be written to ({output.error}): only what the "
                "command prints is lost. Make room, or choose another file."
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
            # A normal exit waits for the other processes, which may wait for this one.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:  # called by a program, see `leaving.watch`
        _say(interrupted)
        return leaving.EXIT_CODE
    except SystemExit as end:  # of argparse after --help
        return end.code
    return 0


def _say(sentence):
    """Print one line of limited length, without control characters, on stderr."""
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in as_called(sentence.strip())
    )
    cut = f"{line[:_LONGEST]}..." if len(line) > _LONGEST else line
    print(f"rn_jax: {cut}", file=sys.stderr)


@contextlib.contextmanager
def _quiet_after_a_failed_write():
    """Silence follow-up errors of a failed write in TensorStore, which is reported.

    Its other writes end later and would each print that Orbax's event loop is closed.
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
    """Return a new folder under runs/, with a name and the time."""
    time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return os.path.join("runs", f"{name}-{time}")
