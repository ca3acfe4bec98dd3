# SPDX-License-Identifier: Apache-2.0
"""Commands whose output is closed, full, absent, or of few characters."""

import contextlib
import io
import os
import subprocess
import sys

import pytest
from driver import ROOT, arguments, in_process, lines

from experiments import cli
from rn_jax.errors import InputError


def closed_pipe():
    """The end to write to of a pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    return open(write, "w", encoding="utf-8")


def full_disk():
    return open("/dev/full", "w", encoding="utf-8")


def talk():
    for _ in range(10_000):  # more than fits into a buffer
        print("± a line")
    print("told", file=sys.stderr)


@pytest.fixture
def streams(monkeypatch):
    """set(out, err) for this test only; what is in their buffers can be written."""
    with contextlib.ExitStack() as stack:

        def put(**given):
            for name, stream in given.items():
                monkeypatch.setattr(sys, name, stream)
                if stream is not None:
                    # As at Python's end: to close it is to flush it once more.
                    stack.callback(stream.close)

        yield put


def test_closed_pipe_is_no_error(streams, capsys):
    done = []
    out = closed_pipe()
    streams(stdout=out)
    assert cli.exit_code(lambda: [talk(), done.append(1)]) == 0
    assert done and sys.stdout is out
    assert capsys.readouterr().err == "told\n"


def test_output_that_cannot_be_stored_is_said_at_the_end(streams, capsys):
    done = []
    streams(stdout=full_disk())
    assert cli.exit_code(lambda: [talk(), done.append(1)]) == 2
    assert done
    told, said = capsys.readouterr().err.splitlines()
    assert told == "told"
    assert said.startswith("rn_jax: Standard output cannot be written to ([Errno 28] ")


def test_so_is_a_short_output_that_was_in_the_buffer(streams, capsys):
    streams(stdout=full_disk())
    assert cli.exit_code(lambda: print("short")) == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_another_exit_code_is_kept(streams, capsys):
    class SavedError(InputError):
        exit_code = 75

    def stop():
        print("short")
        raise SavedError("Saved.")

    streams(stdout=full_disk())
    assert cli.exit_code(stop) == 75
    assert "rn_jax: Saved.\n" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [closed_pipe, full_disk])
def test_without_standard_error_the_exit_code_is_the_same(streams, broken):
    def refuse():
        talk()
        raise InputError("No.")

    streams(stdout=closed_pipe(), stderr=broken())
    assert cli.exit_code(talk) == 0
    assert cli.exit_code(refuse) == 2


def test_a_program_without_streams(streams):
    streams(stdout=None, stderr=None)
    assert cli.exit_code(talk) == 0
    assert sys.stdout is None and sys.stderr is None
    closed = io.StringIO()
    closed.close()
    streams(stdout=closed, stderr=closed)
    assert cli.exit_code(talk) == 0


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", b"\\xb1 \\u03bb \\udcff\n"),
        ("latin-1", b"\xb1 \\u03bb \\udcff\n"),
        # What a folder's name has that is no UTF-8.
        ("utf-8", b"\xc2\xb1 \xce\xbb \\udcff\n"),
    ],
)
def test_characters_that_the_encoding_does_not_have(streams, encoding, written):
    for name in ("stdout", "stderr"):
        binary = io.BytesIO()
        streams(**{name: io.TextIOWrapper(binary, encoding)})
        assert cli.exit_code(lambda: print("± λ \udcff", file=getattr(sys, name))) == 0
        assert binary.getvalue() == written


def test_texts_are_for_a_program_s_own_stream(streams):
    out = io.StringIO()
    streams(stdout=out)
    assert cli.exit_code(lambda: print("±")) == 0
    assert out.getvalue() == "±\n"


def test_run_whose_output_is_closed_trains_to_its_end(streams, tmp_path, monkeypatch):
    streams(stdout=closed_pipe(), stderr=closed_pipe())
    assert in_process(monkeypatch, arguments(tmp_path / "run")) == 0
    assert (tmp_path / "run" / "summary.json").exists()
    assert [line["step"] for line in lines(tmp_path / "run")] == [5, 10]


def shell(script):
    """What bash says of a script that calls `experiments`, as a person would."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "python": sys.executable},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        ('"$python" -m experiments.run --list | head -n 1', 0, ""),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ('"$python" -m experiments.run --help | head -n 1', 0, ""),
                ('"$python" -m experiments.run --list >&-', 0, ""),
                ('"$python" -m experiments.run --list <&- >&- 2>&-', 0, ""),
                ('"$python" -m experiments.run --list > /dev/full', 2, "No space left"),
                ('"$python" -m experiments.run --help > /dev/full', 2, "No space left"),
                ('"$python" -m experiments.run 2>&-', 2, ""),
                ('"$python" -m experiments.run 2>/dev/full', 2, ""),
            ]
        ),
    ],
)
def test_in_a_shell(script, code, told):
    done = shell(script)
    assert done.returncode == code
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == bool(told)
