# SPDX-License-Identifier: Apache-2.0
"""Commands that a script calls which registers networks of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT

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


def called(*arguments, **environ):
    """The process of python with these arguments, when it has ended."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("name", "value", "by"),
    [
        ("JAX_ENABLE_X64", "Banana", "run"),
        ("MPLBACKEND", "nonsense", "report"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("JAX_NUM_CPU_DEVICES", "two", "analyze"),
                ("JAX_DEFAULT_MATMUL_PRECISION", "x", "evaluate"),
                ("JAX_NUMPY_DTYPE_PROMOTION", "x", "export"),
                ("JAX_LOG_COMPILES", "maybe", "predict"),
                ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "x", "reproduce"),
                ("FLAX_PROFILE", "2", "sweep"),
                ("TQDM_MININTERVAL", "x", "run"),
            ]
        ),
    ],
)
def test_environment_that_an_import_refuses_is_said(name, value, by):
    done = called("-m", f"experiments.{by}", "--help", **{name: value})
    assert done.returncode == 2
    assert re.fullmatch(
        rf"rn_jax: {name}='{value}' cannot be used \(.*\): give it .*\.\n", done.stderr
    )
    assert not done.stdout


def test_programs_get_the_error_of_the_import_itself():
    done = called("-c", "import experiments.command", JAX_ENABLE_X64="banana")
    assert done.returncode == 1
    assert "ValueError: invalid truth value 'banana'" in done.stderr


def test_without_docstrings_there_is_a_usage_all_the_same(capsys):
    parser = command.Parser(None)
    parser.add_argument("--workdir")
    assert "[--workdir WORKDIR]" in parser.format_help()


@pytest.mark.slow
@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_without_docstrings_and_assertions(name):
    done = called("-OO", "-m", f"experiments.{name}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--help" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", [["-OO"], ["-W", "error"], ["-X", "dev"]], ids=str)
def test_run_under_python_s_options(options, tmp_path):
    config = ["--config=configs/resnet20.py:digits", "--config.epochs=1"]
    config += ["--config.model_kwargs.stage_sizes=(1,1,1)", "--config.batch_size=240"]
    for argv in (
        ["--list"],
        ["--dry_run", *config],
        [f"--workdir={tmp_path}", *config],
    ):
        done = called(*options, "-m", "experiments.run", *argv)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "summary.json").exists()


@pytest.mark.slow
def test_texts_are_utf_8_in_every_locale(tmp_path):
    """A report with "±" and a folder's name, where the locale knows ASCII only."""
    out = tmp_path / "ü"
    done = called(
        *("-m", "experiments.analyze", "--weights=resnet20_digits", f"--out={out}"),
        *("--study=delete_one", "--images=20", "--draws=2"),
        **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"--out={out}" in (out / "report.md").read_text("utf-8")


def test_files_are_read_and_written_by_a_named_encoding():
    """Not by the locale's, which `open`, `read_text` and `write_text` would take."""
    unnamed = re.compile(
        r"\.read_text\(\)|\.write_text\((?!.*utf-8)|\bopen\([^()]*\"[aw]\"\)"
    )
    files = [
        f
        for d in ("rn_jax", "experiments", "docs", "benchmarks")
        for f in (ROOT / d).rglob("*.py")
    ]
    found = [
        f"{file}: {line}"
        for file in files
        for line in file.read_text("utf-8").splitlines()
        if unnamed.search(line)
    ]
    assert not found
