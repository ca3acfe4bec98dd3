# SPDX-License-Identifier: Apache-2.0
"""What a result says of the machine, the versions and the revision that made it."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import rn_jax
from experiments.training import environment


def test_facts_of_this_machine():
    facts = environment.machine()
    assert set(facts) == {"cpu", "cores", "memory_gib"}  # no accelerator here
    assert facts["cpu"] and facts["cores"] >= 1 and facts["memory_gib"] >= 1


@pytest.fixture
def two_gpus(monkeypatch):
    class Gpu:
        platform, device_kind = "gpu", "NVIDIA H100"

    monkeypatch.setattr(jax, "devices", lambda: [Gpu(), Gpu()])
    monkeypatch.setattr(jax, "device_count", lambda: 2)


def test_an_accelerator_is_counted_and_named(two_gpus):
    assert environment.machine()["accelerator"] == "2 x NVIDIA H100"


@pytest.mark.parametrize(
    ("file", "kind"),
    [("nvidia0", "GPU"), ("accel0", "TPU"), ("vfio/0", "TPU"), ("nvidiactl", None)],
)
def test_an_accelerator_that_is_not_used_is_not_passed_over(tmp_path, file, kind):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    found = environment.devices_in_words(tmp_path)
    assert "x cpu." in found and ("Runtime > " in found)
    assert found.startswith("WARNING") == (kind is not None)
    if kind:
        assert f"a {kind}, which is NOT used" in found


def test_an_accelerator_in_use_needs_no_advice(two_gpus, tmp_path):
    (tmp_path / "nvidia0").touch()
    found = environment.devices_in_words(tmp_path)
    assert found == f"JAX {jax.__version__} uses 2 x NVIDIA H100."


def test_versions_of_packages_that_are_there_and_are_not():
    assert environment.versions(["jax", "no-such-package"]) == {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "no-such-package": None,
    }


def test_the_revision_is_that_of_the_code_and_not_of_the_current_folder(
    tmp_path, monkeypatch
):
    root = Path(rn_jax.__file__).parents[1]
    said = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True
    )
    monkeypatch.chdir(tmp_path)
    expected = said.stdout.strip() if said.returncode == 0 else None
    assert environment.git_revision() == expected


@pytest.mark.parametrize("within", ["no git", "another's"])
def test_a_copy_outside_the_repository_has_no_revision(within, tmp_path):
    """Also one installed within the checkout of another project."""
    if within == "another's":
        (tmp_path / "theirs").touch()
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
        for words in (["init", "-q"], ["add", "theirs"], ["commit", "-qm", "Begin"]):
            subprocess.run([*git, *words], cwd=tmp_path, check=True)
    shutil.copy(environment.__file__, tmp_path)
    program = "import environment; print(environment.git_revision())"
    path = "" if within == "no git" else os.environ["PATH"]
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(rn_jax.__file__).parents[1]), "PATH": path},
        capture_output=True,
        text=True,
    )
    assert said.stdout == "None\n", said.stderr
