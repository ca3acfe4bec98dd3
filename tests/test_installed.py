# SPDX-License-Identifier: Apache-2.0
"""The package from a wheel: what it installs, and the commands in an empty folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from experiments import cli

ROOT = Path(__file__).parents[1]
SOURCES = (
    *("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"),
    *("rn_jax", "experiments", "configs"),
)
SHORT = ["--epochs=1", "--batch_size=240", "--num_devices=1"]
SHORT += ["--model_kwargs.stage_sizes=(1,1,1)"]
OWN = """
from configs import resnet110

def get_config(dataset="digits"):
    return resnet110.get_config(dataset)
"""
SCRIPT = """
import sys
from rn_jax import ModelEntry, commands, register_model
from rn_jax.models.resnet import ResNet

register_model("mine", ModelEntry(ResNet, {"stage_sizes": (1, 1, 1)}))
sys.exit(commands.main())
"""

pytestmark = pytest.mark.slow


def run(*words, folder, code=0):
    """What a command prints, in a process that knows nothing of this one's path."""
    env = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, words)], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a source distribution of the files that it needs."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    hook = "from setuptools import build_meta; build_meta.build_"
    out = folder / "dist"
    out.mkdir()
    run(sys.executable, "-c", f"{hook}sdist({str(out)!r})", folder=folder)
    [archive] = out.iterdir()
    shutil.unpack_archive(archive, folder)
    unpacked = folder / archive.name.removesuffix(".tar.gz")
    run(sys.executable, "-c", f"{hook}wheel({str(out)!r})", folder=unpacked)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The programs of an environment with the wheel, and with the tests' packages.

    The checkout is not on its path: a path that a .pth file adds is no site folder, and
    the file by which the tests' environment finds the checkout is not read there. The
    wheel is installed before, so that pip cannot see, or remove, that of the tests.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run(sys.executable, *install, wheel, folder=folder)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code, folder=folder).strip())
    seen = [path for path in sys.path if path.endswith("-packages")]
    (site / "packages_of_the_tests.pth").write_text("\n".join(seen), "utf-8")
    return folder / "bin"


def test_a_wheel_has_one_folder_that_cannot_collide(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top.partition("-")[0] for top in tops} == {"rn_jax"} and len(tops) == 2
    for package in ("rn_jax", "experiments", "configs"):
        within = "" if package == "rn_jax" else "rn_jax/_commands/"
        for file in (ROOT / package).rglob("*.py"):
            assert f"{within}{file.relative_to(ROOT).as_posix()}" in names
    assert not [name for name in names if "__pycache__" in name]


def test_programs_import_the_commands_when_they_ask(installed, tmp_path):
    absent = "import rn_jax, importlib.util as u; print(u.find_spec('experiments'))"
    assert run(installed / "python", "-c", absent, folder=tmp_path) == "None\n"
    asked = (
        "from rn_jax import commands; commands.make_importable()\n"
        "from experiments import analyze, cli\n"
        "import configs\n"
        "print(configs.get_config('resnet20').model, cli.as_typed('run', []))"
    )
    printed = run(installed / "python", "-c", asked, folder=tmp_path)
    assert printed == "resnet20 rn-jax run\n"


def test_commands_in_an_empty_folder(installed, tmp_path):
    def call(*argv, code=0):
        return run(installed / "rn-jax", *argv, folder=tmp_path, code=code)

    printed = call("--help")
    assert all(f"  {name} " in printed for name in cli.COMMANDS)
    assert "resnet110_sd " in call("run", "--list")
    config = ["resnet110_sd:digits", *SHORT]
    assert "parameters" in call("run", "--config=configs/resnet110_sd.py", "--dry_run")
    call("run", *config)
    [folder] = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary["command"].startswith("rn-jax run resnet110_sd:digits --epochs=1")
    assert summary["git_revision"] is None and summary["versions"]["rn_jax"]
    at = f"--workdir={folder.relative_to(tmp_path)}"
    call("analyze", at, "--study=delete_one", "--images=60")
    study = json.loads((folder / "analysis" / "delete_one.json").read_text("utf-8"))
    assert study["command"].startswith("rn-jax analyze")
    call("report", folder.relative_to(tmp_path))
    assert "rn-jax report" in (folder / "report.html").read_text("utf-8")
    call("export", at, "--format=safetensors")
    call("sweep", *config, "--grid", "seed=0,1", "--workdir=swept")
    rows = json.loads((tmp_path / "swept" / "sweep.json").read_text("utf-8"))["rows"]
    assert [row["state"] for row in rows] == ["finished"] * 2
    rows = ["--table=digits", "--only=resnet20", "--seeds=1", "--scale=0.04"]
    call("reproduce", *rows, "--keep=kept", *SHORT[1:])
    page = (tmp_path / "kept" / "README.md").read_text("utf-8")
    assert "`rn-jax reproduce --keep=results`" in page and "python -m" not in page
    one = [*rows[:2], *rows[3:], *SHORT[1:]]
    call("reproduce", *one, "--budget=900", "--workdir=timed")
    [row] = json.loads((tmp_path / "timed" / "table.json").read_text("utf-8"))["rows"]
    assert row["state"] == "finished"
    call("claims", "--only=path_lengths")
    assert "rn-jax claims" in (tmp_path / "runs/claims/claims.md").read_text("utf-8")
    said = call("evaluate", at, code=2)
    assert said.count("\n") == 1 and "its summary.json has their error" in said
    assert "nowhere is not a run: rn-jax run " in call("report", "nowhere", code=2)


def test_a_signal_ends_the_installed_command_at_once(installed, tmp_path):
    """It begins otherwise than `python -m`, see `rn_jax.startup`."""
    words = ["rn-jax", "run", "resnet110:digits", "--num_devices=1", "--workdir=run"]
    command = subprocess.Popen(
        [installed / words[0], *words[1:], f"--compilation_cache={tmp_path}/cache"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "Compiling the training step" not in (line := command.stdout.readline()):
        assert line, command.stderr.read()
    command.send_signal(signal.SIGTERM)
    _, told = command.communicate(timeout=30)
    assert (command.returncode, told.count("\n")) == (75, 1), told
    assert "the same command with --workdir=run resumes" in told


def test_a_config_and_a_network_of_the_user_s_own(installed, tmp_path):
    (tmp_path / "mine.py").write_text(OWN, "utf-8")
    printed = run(installed / "rn-jax", "run", "mine.py", "--dry_run", folder=tmp_path)
    assert "parameters" in printed
    (tmp_path / "register.py").write_text(SCRIPT, "utf-8")
    words = ["run", "resnet20:digits", "--model=mine", "--workdir=runs/mine", *SHORT]
    run(installed / "python", "register.py", *words, folder=tmp_path)
    summary = json.loads((tmp_path / "runs/mine/summary.json").read_text("utf-8"))
    assert summary["command"].startswith("python register.py run resnet20:digits")
