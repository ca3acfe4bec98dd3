# SPDX-License-Identifier: Apache-2.0
"""The machine, versions and revision that a result was made with."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax

from rn_jax import parallel


def machine() -> dict[str, object]:
    """Return the facts of this machine that decide how fast it is.

    Returns:
        A dict with cpu, cores, memory_gib and, if JAX's devices are not the CPU,
        accelerator (their number and kind).
    """
    device = jax.devices()[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {
        "cpu": _cpu_model(),
        "cores": parallel.cpu_cores(),
        "memory_gib": round(memory / 2**30),
    }
    if device.platform != "cpu":
        facts["accelerator"] = f"{jax.device_count()} x {device.device_kind}"
    return facts


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return the versions of Python and of packages; None for one not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_revision() -> str | None:
    """Return the revision of the checkout that has this file; None outside one."""
    command, folder = ["git", "rev-parse", "HEAD"], Path(__file__).parent
    try:  # the error, in the user's language, is not shown
        found = subprocess.check_output(command, cwd=folder, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.decode("ascii").strip()
