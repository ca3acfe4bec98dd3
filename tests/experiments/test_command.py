# SPDX-License-Identifier: Apache-2.0
"""Commands that a script calls which registers networks of its own."""

import sys
from pathlib import Path

import pytest

from experiments import command


@pytest.mark.parametrize(
    "typed, line",
    [
        (["-X", "dev", "mine.py", "--a=b c"], "python -X dev mine.py '--a=b c'"),
        (["mine.py", "run", "--a=b c"], "python mine.py run '--a=b c'"),
        # A notebook or a test, which has other arguments.
        (["-m", "pytest", "-q"], "python -m experiments.run '--a=b c'"),
        (["-c", "a program", "--a=b c"], "python -m experiments.run '--a=b c'"),
        (["-", "--a=b c"], "python -m experiments.run '--a=b c'"),
    ],
)
def test_line_that_calls_it_again(typed, line, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", *typed])
    monkeypatch.setattr(sys, "argv", [typed[0], "--a=b c"])
    assert command.as_typed("run", ["--a=b c"]) == line


def test_a_script_s_first_argument_names_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mine.py", "run", "--list"])
    assert command.of_script() == 0
    assert "resnet110_sd" in capsys.readouterr().out
    for argv in (["mine.py"], ["mine.py", "reprot"]):
        monkeypatch.setattr(sys, "argv", argv)
        assert command.of_script() == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("rn_jax: Name a command first: analyze, ")
    assert told[1].startswith("rn_jax: Unknown command 'reprot'; near it: report")


def test_commands_are_the_modules_with_a_main():
    files = Path(command.__file__).parent.glob("*.py")
    found = [file.stem for file in files if "\ndef main(" in file.read_text()]
    assert sorted(found) == list(command.COMMANDS)
