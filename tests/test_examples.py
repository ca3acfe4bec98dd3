# SPDX-License-Identifier: Apache-2.0
"""Every block of code in README and docs: Python is run, commands are taken.

After "It prints:" stands what a block of Python prints.

A command is given to its program whole, which checks its options and configs, and stops
where the work would begin; those of the tutorial, of a block of one's own and of
README's beginning are also run to their ends, shortened. What needs a network, hardware
or files that are not here carries the comment `not run: why`, and `NOT_RUN` lists it.
"""

import contextlib
import functools
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import generated
import jax
import numpy as np
import pytest
from PIL import Image

from experiments.studies import STUDIES
from rn_jax.data import DATASETS
from rn_jax.models import MODELS

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]*) -->\n+)?"
    r"(?:```python\n(?P<python>.*?)```"
    r"(?:\n\nIt prints:\n\n(?P<printed>(?:^ {4}[^\n]*\n)+))?"
    r"|(?P<shell>(?:^ {4}(?:\S+\$ )?"
    r"(?:\.venv/bin/|rn-jax |python -m |make |sbatch |gcloud )[^\n]*\n"
    r"(?:^ {5}[^\n]*\n)*)+))",
    re.S | re.M,
)
NOT_RUN = {
    "README.md": ["needs resnet50.pth"],
    "docs/clusters.md": ["needs SLURM", *2 * ["needs a TPU slice"]],
    "docs/how_to/data_set.md": ["downloads kmnist"],
    "docs/weights.md": ["downloads weights"],
}
# Make's targets that tests, or CI itself, run.
TARGETS = {"demo", "test", "test-all", "test-faults", "docs", "install"}
# Where the work of a command begins.
WORK = {
    "experiments.run": ("experiments.training.loop", "train"),
    "experiments.sweep": ("experiments.training.many_runs", "train"),
    "experiments.reproduce": ("experiments.training.many_runs", "check"),
    "experiments.analyze": ("experiments.studies.subject", "find"),
    "experiments.evaluate": ("experiments.evaluate", "evaluate"),
    "experiments.export": ("experiments.export", "export"),
    "experiments.predict": ("experiments.predict", "predict"),
    "experiments.report": ("experiments.report", "report"),
}


def blocks(page, until=None):
    text = page.read_text().partition(until)[0] if until else page.read_text()
    return [found.groupdict() for found in BLOCK.finditer(text)]


def name(page):
    return str(page.relative_to(ROOT))


def test_what_is_not_run_is_listed():
    found = {name(p): [b["why"] for b in blocks(p) if b["why"]] for p in PAGES}
    assert {page: reasons for page, reasons in found.items() if reasons} == NOT_RUN


def test_every_fence_is_found():
    for page in PAGES:
        fences = page.read_text().count("```")
        assert fences == 2 * sum(b["python"] is not None for b in blocks(page))


WITH_PYTHON = [p for p in PAGES if any(b["python"] for b in blocks(p))]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=[] if p.name == "README.md" else pytest.mark.slow)
        for p in WITH_PYTHON
    ],
    ids=map(name, WITH_PYTHON),
)
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page one after another, as a reader would."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    with contextlib.ExitStack() as stack:
        for table in (MODELS, DATASETS, STUDIES):
            stack.enter_context(mock.patch.dict(table))  # what a page adds goes again
        # JAX widens dtypes for a reader, where the tests are strict.
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        for block in blocks(page):
            if block["python"] and not block["why"]:
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    exec(compile(block["python"], name(page), "exec"), names)
                if block["printed"]:
                    assert output.getvalue() == textwrap.dedent(block["printed"])


def recipe(target):
    """The command of a target of make."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)
    return re.sub(r"\\\n", " ", found.group(1)).replace("$(BIN)", ".venv/bin")


def commands_of(page, until=None):
    """Those above a heading, or all."""
    for block in blocks(page, until):
        if block["shell"] and not block["why"]:
            text = re.sub(r"\\\n", " ", block["shell"])
            for line in text.splitlines():
                if line := re.sub(r"^\S+\$ ", "", line.strip()):
                    yield line


def commands():
    for page in PAGES:
        for line in commands_of(page):
            yield pytest.param(line, id=f"{name(page)}: {line[:60]}")


# What makes a command of each kind short.
SHORT = {
    "run": ["--config.epochs=1", "--config.num_devices=1"],
    "analyze": ["--images=60"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page, left",
    [
        (
            "docs/tutorial.md",
            [
                *("figures/learning_curves.png", "report.html", "resnet32.stablehlo"),
                *("analysis/delete_one.png", "resnet32.safetensors"),
            ],
        ),
        ("docs/how_to/block.md", ["analysis/delete_one.png"]),
        (
            "README.md",
            ["report.html", "analysis/delete_one.png", "resnet110.stablehlo"],
        ),
    ],
)
def test_commands_of_a_page_one_after_another(page, left, tmp_path):
    """In a folder that has the project's configs, as a reader would."""
    page = ROOT / page
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    python = [block["python"] for block in blocks(page) if block["python"]]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "my_block.py").write_text("\n".join(python))
    for name in ("picture.png", "digit.png"):  # the tutorial's Python writes the second
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    for line in commands_of(page, until="## Beside other projects"):
        words = shlex.split(recipe("demo") if line == "make demo" else line)
        if words[0] != ".venv/bin/python":  # of make
            continue
        kind = words[2].removeprefix("experiments.")
        short = [] if "--list" in words else SHORT.get(kind, [])
        done = subprocess.run(
            [sys.executable, *words[1:], *short],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    [run] = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert [file for file in left if not (run / file).is_file()] == []
    noted = json.loads((run / "summary.json").read_text())["command"]
    assert noted.split()[1] in ("-m", "runs/my_block.py")
    assert (noted.split()[1] == "-m") == (page.name != "block.md")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for dataset in ("cifar10", "cifar100"):
        generated.prepare(dataset, folder)
    return folder


class BeganError(Exception):
    """The work of a command."""


@pytest.mark.parametrize("line", list(commands()))
def test_command_is_taken(line, tmp_path, monkeypatch, data_dir, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert words[1] in TARGETS
        assert re.search(rf"^{words[1]}:", MAKEFILE, re.M)
        return
    if words[1] == "runs/my_block.py":  # which its page makes, and which registers this
        monkeypatch.setitem(MODELS, "se_resnet20", MODELS["resnet20"])
        words[1:3] = ["-m", f"experiments.{words[2]}"]
    if words[0] == "rn-jax":
        if words[1] == "--help":
            return
        words[:2] = ["python", "-m", f"experiments.{words[1]}"]
    assert words[0] in (".venv/bin/python", "python") and words[1] == "-m"
    module = importlib.import_module(words[2])
    if words[2] not in WORK:  # a benchmark, or docs.generate
        assert module.__doc__ and "python -m " + words[2] in module.__doc__
        return
    if "--coordinator" in line:
        monkeypatch.setattr("rn_jax.parallel.join_processes", lambda **_: True)
    where, what = WORK[words[2]]
    place = importlib.import_module(where)
    began = []

    @functools.wraps(getattr(place, what))  # options come from its signature
    def begin(*args, **kwargs):
        began.append(what)
        raise BeganError

    monkeypatch.setattr(place, what, begin)
    monkeypatch.setattr("experiments.dry_run.plan", begin)
    monkeypatch.setattr(sys, "argv", ["command", *words[3:]])
    try:
        assert module.main(words[3:]) == 0, capsys.readouterr().err
    except BeganError:
        pass
    assert began or "--list" in words
