# SPDX-License-Identifier: Apache-2.0
"""What a result says of the machine, the versions and the revision that made it."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import jax

import rn_jax
from experiments.training import environment


def test_facts_of_this_machine():
    facts = environment.machine()
    assert set(facts) == {"cpu", "cores", "memory_gib"}  # no accelerator here
    assert facts["cpu"] and facts["cores"] >= 1 and facts["memory_gib"] >= 1


def test_an_accelerator_is_counted_and_named(monkeypatch):
    class Gpu:
        platform, device_kind = "gpu", "NVIDIA H100"

    monkeypatch.setattr(jax, "devices", lambda: [Gpu(), Gpu()])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert environment.machine()["accelerator"] == "2 x NVIDIA H100"


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


def test_a_copy_without_a_repository_has_no_revision(tmp_path):
    shutil.copy(environment.__file__, tmp_path)
    program = "import environment; print(environment.git_revision())"
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(rn_jax.__file__).parents[1]), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert said.stdout == "None\n", said.stderr
