# SPDX-License-Identifier: Apache-2.0
"""docs/train.sbatch, with a stand-in for SLURM's commands."""

import os
import re
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = DOCS / "train.sbatch"


def submit(folder, *arguments, srun="true"):
    """Runs the script; its exit code, and the commands it gave to SLURM.

    Args:
        folder: for the stand-ins, which note how they are called.
        arguments: of the script.
        srun: what srun's stand-in does.
    """
    for name, body in {"srun": srun, "scontrol": "true"}.items():
        file = folder / name
        file.write_text(f'#!/bin/bash\necho {name} "$@" >> {folder}/calls\n{body}\n')
        file.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", SCRIPT, *arguments],
        env={**os.environ, "PATH": path, "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
    )
    calls = folder / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_is_a_script():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    lines = SCRIPT.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and line[0] != "#")
    # SLURM reads its options up to the first command.
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
    # As many processes as GPUs: jax.distributed takes one for each.
    per_node = dict(
        re.findall(r"#SBATCH --(gpus|ntasks)-per-node=(\d+)", "\n".join(lines))
    )
    assert per_node["gpus"] == per_node["ntasks"]


def test_starts_the_run(tmp_path):
    workdir = tmp_path / "a run"
    _, calls = submit(tmp_path, workdir, "--config=configs/resnet50.py")
    assert calls[0] == (
        "srun .venv/bin/python -m experiments.run "
        f"--workdir={workdir} --config=configs/resnet50.py"
    )


@pytest.mark.parametrize(
    ("srun", "code", "again"),
    [
        ("true", 0, False),
        ("exit 2", 2, False),
        ("exit 75", 75, True),
    ],
)
def test_is_queued_again_only_if_it_was_stopped(tmp_path, srun, code, again):
    run = tmp_path / "run"
    done, calls = submit(tmp_path, run, srun=srun)
    assert done.returncode == code
    assert ("scontrol requeue 7" in calls) == again


def test_needs_a_folder(tmp_path):
    done, calls = submit(tmp_path)
    assert done.returncode != 0 and not calls
    assert "name a folder" in done.stderr


def test_the_documents_name_the_script():
    text = (DOCS / "clusters.md").read_text()
    assert f"docs/{SCRIPT.name}" in text and f"]({SCRIPT.name})" in text
