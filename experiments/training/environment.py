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
        facts["accelerator"] = _devices()
    return facts


def _devices() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


# Device files of the accelerators that JAX supports.
_DEVICE_FILES = {"GPU": ("nvidia[0-9]*",), "TPU": ("accel[0-9]*", "vfio/[0-9]*")}


def devices_in_words(folder: Path = Path("/dev")) -> str:
    """Return which devices JAX uses, and what to do if they are only CPUs.

    Args:
        folder: has a file for each accelerator of the machine.
    """
    used = f"JAX {jax.__version__} uses {_devices()}."
    if jax.devices()[0].platform != "cpu":
        return used
    for kind, patterns in _DEVICE_FILES.items():
        if any(path for pattern in patterns for path in folder.glob(pattern)):
            return (
                f"WARNING: {used} This machine has a {kind}, which is NOT used: JAX "
                f"needs a {kind} plugin of its own version. On Colab, choose Runtime > "
                "Disconnect and delete runtime, and run this notebook again."
            )
    return f"{used} On Colab, Runtime > Change runtime type offers GPUs and TPUs."


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
    """Return the revision of the checkout that has this file; None outside one.

    An installed file in an environment within another project's checkout has none.
    """
    file = Path(__file__)
    try:
        _git("ls-files", "--error-unmatch", file.name, folder=file.parent)
        return _git("rev-parse", "HEAD", folder=file.parent)
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words, folder):
    """Return what git prints; its errors, in the user's language, are not shown."""
    found = subprocess.check_output(
        ["git", *words], cwd=folder, stderr=subprocess.DEVNULL
    )
    return found.decode("ascii").strip()
