# SPDX-License-Identifier: Apache-2.0
"""docs/train.sbatch, with a stand-in for SLURM's commands."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = DOCS / "train.sbatch"


def submit(folder, *arguments, srun="true"):
    """Run the script, and return its process and the commands it gave to SLURM.

    Args:
        folder: folder of the stand-ins, which record how they are called.
        arguments: arguments of the script.
        srun: body of srun's stand-in.
    """
    for name, body in {"srun": srun, "scontrol": "true"}.items():
        file = folder / name
        file.write_text(f'#!/bin/bash\necho {name} "$@" >> {folder}/calls\n{body}\n')
        file.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", SCRIPT, *arguments],
        cwd=DOCS.parent,
        env={**os.environ, "PATH": path, "SLURM_JOB_ID": str(os.getpid())},
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
    assert (f"scontrol requeue {os.getpid()}" in calls) == again


def test_needs_a_folder(tmp_path):
    done, calls = submit(tmp_path)
    assert done.returncode != 0 and not calls
    assert "name a folder" in done.stderr


def test_the_documents_name_the_script():
    text = (DOCS / "clusters.md").read_text()
    assert f"docs/{SCRIPT.name}" in text and f"]({SCRIPT.name})" in text


@pytest.mark.slow
def test_two_processes_find_each_other_as_under_slurm(tmp_path):
    """With the variables that srun gives to two tasks on one node."""
    srun = """
        for i in 0 1; do
            SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_PROCID=$i \\
                SLURM_LOCALID=$i JAX_PLATFORMS=cpu "$@" &
        done
        wait
    """
    options = (
        "--config=configs/resnet20.py:digits",
        "--config.model_kwargs.stage_sizes=(1,1,1)",
        "--config.epochs=1",
        "--config.batch_size=240",
    )
    done, _ = submit(tmp_path, tmp_path / "run", *options, srun=srun)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run folder") == 1
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["processes"] == 2
