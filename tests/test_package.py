# SPDX-License-Identifier: Apache-2.0
"""What `import rn_jax` brings, and what it does not."""

import os
import subprocess
import sys
from pathlib import Path

import rn_jax

HEAVY = (
    "array_record",
    "cv2",
    "grain",
    "matplotlib",
    "ml_collections",
    "optax",
    "orbax",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tqdm",
)


def test_importing_needs_only_jax_and_flax():
    root = str(Path(rn_jax.__file__).parents[1])
    code = f"import sys, rn_jax; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_public_names_are_there():
    assert sorted(rn_jax.__all__) == list(rn_jax.__all__)
    for name in rn_jax.__all__:
        assert getattr(rn_jax, name).__doc__
