# SPDX-License-Identifier: Apache-2.0
"""What the commands share: options, lines as typed, sentences, exit codes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from driver import ROOT, arguments, in_process, stop_after
from fake import use
from PIL import Image

import rn_jax
from configs.default import ALIASES, FIELDS
from experiments import (
    analyze,
    cli,
    evaluate,
    export,
    predict,
    report,
    reproduce,
    sweep,
)
from experiments import run as command_run
from rn_jax import InputError, commands, filesystem, leaving

# Names of folders, of which the second is what the first, as a pattern, matches.
ODD = "a [2026] *?\\ 'q' \"d\" #%20\u00e9\n{x}$HOME$ <b>;&~,=:|"
MATCHED = ODD.replace("[2026]", "2").replace("*?\\", "bc\\")
PDF = ["--format=png,pdf"]


@pytest.mark.parametrize(
    "typed, line",
    [
        (["-X", "dev", "mine.py", "--a=b c"], "python -X dev mine.py '--a=b c'"),
        (["mine.py", "run", "--a=b c"], "python mine.py run '--a=b c'"),
        (["/a/bin/rn-jax", "run", "--a=b c"], "rn-jax run '--a=b c'"),
        # A notebook or a test, which has other arguments.
        (["-m", "pytest", "-q"], "python -m experiments.run '--a=b c'"),
        (["-c", "a program", "--a=b c"], "python -m experiments.run '--a=b c'"),
        (["-", "--a=b c"], "python -m experiments.run '--a=b c'"),
    ],
)
def test_line_that_calls_it_again(typed, line, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", *typed])
    monkeypatch.setattr(sys, "argv", [typed[0], "--a=b c"])
    assert cli.as_typed("run", ["--a=b c"]) == line


@pytest.fixture
def never_left(monkeypatch):
    """A command without arguments would end this process on a later signal."""
    monkeypatch.setattr(leaving, "watch", lambda: None)


@pytest.mark.usefixtures("never_left")
def test_a_script_s_first_argument_names_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mine.py", "run", "--list"])
    assert cli.of_script() == 0
    assert "resnet110_sd" in capsys.readouterr().out
    for argv in (["mine.py"], ["mine.py", "reprot"]):
        monkeypatch.setattr(sys, "argv", argv)
        assert cli.of_script() == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("rn_jax: Name a command first: analyze, ")
    assert told[1].startswith("rn_jax: Unknown command 'reprot'; similar: report")


@pytest.mark.usefixtures("never_left")
def test_the_console_script_lists_the_commands_and_names_itself(monkeypatch, capsys):
    def called(*argv):
        monkeypatch.setattr(sys, "argv", ["/a/bin/rn-jax", *argv])
        return commands.main()

    before = list(sys.path)
    monkeypatch.setattr(sys, "path", before)
    assert called("--help") == 0
    printed = capsys.readouterr().out
    assert "  run        Train a network by a config.\n" in printed
    assert re.findall(r"^  (\w+) ", printed, re.M) == list(cli.COMMANDS)
    assert called("run", "--help") == 0
    assert "usage: rn-jax run CONFIG[:DATASET]" in capsys.readouterr().out
    assert called("run", "resnet21") == 2
    assert "; rn-jax run --list lists all." in capsys.readouterr().err
    assert called("analyze", "--workdir=nowhere") == 2
    assert "nowhere is not a run: rn-jax run --config" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert cli.as_called("python -m experiments.run") == "python -m experiments.run"


@pytest.mark.usefixtures("never_left")
def test_the_console_script_without_its_extra(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["/a/bin/rn-jax", "export"])
    monkeypatch.setitem(sys.modules, "experiments.export", None)
    assert commands.main() == 2
    assert capsys.readouterr().err.startswith(
        "rn_jax: The commands need the extra train, which cannot be imported (import"
    )


def test_a_config_and_its_fields_in_short():
    """Each is written in full for `load_config`."""

    def work(arguments: Sequence[str] = (), *, workdir: str = "", seeds: int = 1): ...

    def in_full(*typed):
        return cli.Parser("Work.\n\nusage", work).parse_with_config(typed)[1]

    full = ["--config=resnet20:digits", "--config.epochs=2"]
    assert in_full("resnet20:digits", "--epochs=2") == full
    assert in_full("--workdir=x", "resnet20:digits", "--epochs=2", "--seeds=3") == full
    assert in_full(*full) == full
    assert in_full("--epochs", "2", "resnet20") == [
        *("--config.epochs", "2", "--config=resnet20")
    ]
    assert in_full("--normalization", "unit") == ["--config.normalization", "unit"]
    assert in_full("--learning_rate", "-1") == ["--config.learning_rate", "-1"]
    assert in_full("--noaugment", "--nesterov", "resnet20") == [
        *("--noconfig.augment", "--config.nesterov", "--config=resnet20")
    ]
    sd = "stochastic_depth.last_survival=0.5"
    assert in_full(f"--{sd}", "--accum_steps=2") == [
        *(f"--config.{sd}", "--config.accum_steps=2")
    ]
    for typed in (["resnet20", "resnet32"], ["resnet20", "--config", "resnet32"]):
        with pytest.raises(InputError, match="one config is named already"):
            in_full(*typed)


@pytest.mark.parametrize("command", [command_run.run, sweep.sweep])
def test_no_option_hides_a_field_of_the_config(command):
    parser = cli.Parser("Work.\n\nusage", command)
    typed = [f"--{field}=0" for field in (*FIELDS, *ALIASES)]
    assert parser.parse_known_args(typed)[1] == typed


def test_commands_are_the_modules_with_a_main():
    files = Path(cli.__file__).parent.glob("*.py")
    found = [file.stem for file in files if "\ndef main(" in file.read_text()]
    assert sorted(found) == list(cli.COMMANDS)


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
    done = called("-c", "import experiments.cli", JAX_ENABLE_X64="banana")
    assert done.returncode == 1
    assert "ValueError: invalid truth value 'banana'" in done.stderr


def test_without_docstrings_there_is_a_usage_all_the_same(capsys):
    def work(*, workdir: cli.Path | None = None): ...

    assert "[--workdir WORKDIR]" in cli.Parser(None, work).format_help()


def test_options_are_the_keywords_of_a_function(capsys):
    calls = []

    def work(
        runs: Sequence[cli.Path],
        model: str,
        *,
        times: int = 3,
        scale: float | None = None,
        quick: bool = False,
        names: Annotated[Sequence[str], {"flag": "--name", "action": "append"}] = (),
        size: Annotated[tuple[int, ...], lambda text: tuple(map(int, text))] = (1, 2),
        command: str = "",
    ):
        """Work.

        Args:
            runs: folders of runs.
            model: name of
                the model.
            times: number of times, 100 % of them.
            scale: a factor; None: the run's.
        """
        calls.append(vars() | {"calls": None})

    def call(*argv):
        return cli.Parser("Work.\n\nusage", work).call(argv, interrupted="No.")

    assert call("a", "b", "--model=m", "--times=4", "--scale=0.5", "--quick") == 0
    assert call("a", "--model=m", "--name=x", "--name=y", "--size=34") == 0
    first, second = calls
    assert (first["runs"], first["times"], first["scale"]) == (["a", "b"], 4, 0.5)
    assert first["quick"] is True and first["names"] == () and first["size"] == (1, 2)
    assert (second["times"], second["names"], second["size"]) == (3, ["x", "y"], (3, 4))
    assert second["command"].endswith("--size=34") and second["quick"] is False
    assert call("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: usage Work. positional arguments: RUN folders of runs." in text
    assert "--model MODEL name of the model." in text
    assert "--times TIMES number of times, 100 % of them (default: 3)" in text
    assert "--scale SCALE a factor; default: the run's." in text
    assert call("a") == 2
    assert "required: --model" in capsys.readouterr().err
    assert call("a", "--model=m", "--times=x") == 2
    assert "invalid int value" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", cli.COMMANDS)
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
def test_path_that_the_locale_cannot_decode(tmp_path):
    """It is refused before anything is measured or written."""
    out = tmp_path / "ü"
    done = called(
        *("-m", "experiments.analyze", "--weights=resnet20_digits", f"--out={out}"),
        *("--study=delete_one", "--images=20", "--draws=2"),
        **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not in UTF-8" in done.stderr and "LC_ALL=C.UTF-8" in done.stderr
    assert not out.exists()


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


@pytest.mark.parametrize(
    "word",
    ["a b", "it's", '"', "$HOME", "a\\nb", "a\nb", "\t'\\", "\x85é\x01\x7f1", "", "*"],
)
def test_a_word_for_the_shell(word):
    line = filesystem.quoted(word)
    assert line.isprintable()
    read = subprocess.run(
        ["bash", "-c", f"printf %s {line}"],
        capture_output=True,
        env={"LC_ALL": "C.UTF-8"},
        check=True,
    )
    assert read.stdout.decode() == word


def test_a_sentence_has_one_line_and_its_names_as_they_are(capsys):
    def fail():
        raise InputError("There is no file a\n  b\x1b[31m.\n")

    assert cli.exit_code(fail) == 2
    assert capsys.readouterr().err == ("rn_jax: There is no file a\\n  b\\x1b[31m.\n")


HOME = [
    ("~", "HOME"),
    ("~/[x]", "HOME/[x]"),
    ("~nobody_of_this_name/x", "~nobody_of_this_name/x"),
    ("./~", "./~"),
    ("a~", "a~"),
    ("gs://a/~", "gs://a/~"),
]


@pytest.mark.parametrize("typed, meant", HOME)
def test_a_tilde_is_the_home_folder_also_after_an_equals_sign(
    typed, meant, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))

    def work(workdir: cli.Path): ...

    parser = cli.Parser("Work.\n\nusage", work)
    meant = meant.replace("HOME", str(tmp_path))
    assert parser.parse_args([f"--workdir={typed}"]).workdir == meant
    assert parser.parse_args(["--workdir", typed]).workdir == meant


@pytest.mark.parametrize(
    "module, argv",
    [
        (command_run, ["--config=configs/resnet20.py:digits", "--workdir=PATH"]),
        (
            command_run,
            ["--config=configs/resnet20.py:digits", "--workdir=PATH", "--seeds=2"],
        ),
        (
            sweep,
            [
                "--config=configs/resnet20.py",
                "--grid=config.seed=1,2",
                "--workdir=PATH",
            ],
        ),
        (reproduce, ["--table=resnet_cifar", "--workdir=PATH"]),
        (reproduce, ["--keep=PATH"]),
        (analyze, ["--workdir=PATH"]),
        (analyze, ["--weights=resnet20_digits", "--out=PATH"]),
        (analyze, ["--weights=resnet20_digits", "--compare=PATH"]),
        (evaluate, ["--workdir=PATH"]),
        (export, ["--workdir=x", "--out=PATH"]),
        (predict, ["--workdir=x", "PATH"]),
        (report, ["PATH"]),
        (report, ["x", "--out=PATH"]),
    ],
)
def test_paths_that_no_file_can_have_are_one_sentence(
    module, argv, monkeypatch, capsys, tmp_path
):
    root = Path(cli.__file__).parents[1]
    argv = [a.replace("configs/", f"{root}/configs/") for a in argv]
    monkeypatch.chdir(tmp_path)
    for path, told in [
        ("file:///tmp/x", "the unknown scheme file://"),
        ("x" * 256, "has 256 bytes; at most 255 are allowed"),
        ("\udcff", "is not in UTF-8"),
    ]:
        assert (
            in_process(monkeypatch, [a.replace("PATH", path) for a in argv], module)
            == 2
        )
        error = capsys.readouterr().err
        assert told in error and error.startswith("rn_jax: ") and error.count("\n") == 1
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_many_runs_in_a_folder_of_any_name(monkeypatch, capsys, tmp_path):
    """Beside one that the name matches as a pattern, in each of these commands."""
    trained = use(monkeypatch)
    root = Path(cli.__file__).parents[1]
    config = f"--config={root}/configs/resnet20.py:digits"
    grid = ["--grid=config.init_from=a$b$c,_d|e"]
    calls = [
        (sweep, [config, *grid, *PDF]),
        (reproduce, ["--table=digits", "--only=resnet20", "--keep=KEPT", *PDF]),
        (command_run, [config, "--seeds=2"]),
    ]
    for number, (module, argv) in enumerate(calls):
        for name in (MATCHED, ODD):
            folder = tmp_path / str(number) / name
            whole = [f"--workdir={folder}", *argv]
            whole = [a.replace("KEPT", f"{folder}/[k]") for a in whole]
            before = len(trained)
            assert in_process(monkeypatch, whole, module) == 0, capsys.readouterr().err
            assert len(trained) > before
            before = len(trained)
            assert in_process(monkeypatch, whole, module) == 0
            assert len(trained) == before  # all are finished
            files = {file.name for file in folder.iterdir()}
            expected = [
                {"table.md", "sweep.png", "sweep.pdf"},
                {"table.md", "[k]"},
                {"seeds.json"},
            ]
            assert expected[number] <= files
            if module is not command_run:
                table = (folder / "table.md").read_text()
                [line] = [x for x in table.splitlines() if x.startswith("    python")]
                assert f"--workdir={folder}".replace("\n", "\\n") in line.replace(
                    "\\\\", "\\"
                ).replace("\\'", "'")
    kept = folder.parents[1] / "1" / ODD / "[k]" / "runs" / "digits"
    assert (kept / "curves.png").exists() and (kept / "curves.pdf").exists()
    keep = [f"--keep={kept.parents[1]}"]
    assert in_process(monkeypatch, keep, reproduce) == 0
    assert "10.00" in (kept.parents[1] / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("relative", [True, False])
def test_a_run_in_a_folder_of_any_name_goes_on(relative, monkeypatch, capsys, tmp_path):
    folder = tmp_path / ODD
    folder.mkdir()
    if relative:
        monkeypatch.chdir(folder)
        (folder / "there").mkdir()
        (folder / "link").symlink_to("there")
    place = "link/../[r]" if relative else folder / "[r]"
    argv = arguments(
        place, "--config.stochastic_depth.last_survival=0.5", "--profile=1"
    )
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        assert in_process(monkeypatch, argv) == 75
    error = capsys.readouterr().err
    typed = error.partition("with --workdir=")[2].partition(" resumes")[0]
    if relative:  # one without a newline, which shlex knows
        assert shlex.split(typed) == [place]
    assert error.count("\n") == 1
    assert in_process(monkeypatch, argv) == 0
    assert "Resumed at step 6" in capsys.readouterr().out
    made = {file.name for file in (folder / "[r]").iterdir()}
    assert {"checkpoints", "profile", "events", "figures", "summary.json"} <= made


@pytest.mark.slow
def test_what_reads_a_run_in_a_folder_of_any_name(run, monkeypatch, capsys, tmp_path):
    folder, out = tmp_path / ODD, tmp_path / "[out]"
    shutil.copytree(run, folder)
    other = tmp_path / "_u,$x$[1]"
    other.symlink_to(folder)
    whole = [f"--workdir={folder}"]
    few = ["--study=delete_one", "--images=50", "--draws=1", *PDF]

    def call(module, *argv):
        assert in_process(monkeypatch, [*argv], module) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    call(analyze, *whole, *few, f"--out={out}", f"--compare={other}")
    assert "| _u,$x$[1] |" in (out / "report.md").read_text()
    assert (out / "delete_one.png").exists() and (out / "delete_one.pdf").exists()
    told = call(export, *whole, "--format=safetensors").splitlines()[-1]
    read = {"rn_jax": rn_jax}
    exec(told, read)  # the line that reads the file again
    assert read["model"].num_blocks == 4
    call(export, *whole, "--format=safetensors", f"--out={out}/{'x' * 243}.safetensors")
    assert len(list(out.glob("x*"))) == 1
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "p [1].png")
    assert "%" in call(predict, *whole, str(folder / "p [1].png"))
    page = out / "report.html"
    call(report, str(folder), str(other), f"--out={page}")
    assert "&lt;b&gt;" in page.read_text()
    monkeypatch.setenv("HOME", str(folder))
    for number, source in enumerate(["~", "~/tiny.safetensors", str(other)]):
        place = tmp_path / f"[{number}]"
        argv = arguments(place, "--config.epochs=1", f"--config.init_from={source}")
        call(command_run, *argv)
        assert "finished run" in call(command_run, *argv)
        assert json.loads((place / "config.json").read_text())["init_from"] == source
