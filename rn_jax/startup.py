# SPDX-License-Identifier: Apache-2.0
"""What a command checks before JAX is imported; `rn_jax` imports it first.

JAX and others read settings from the environment when they are imported. A command
reports a setting that they refuse in one sentence. A program that imports the package
gets the original errors.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys

from rn_jax import leaving

CONSOLE = "rn-jax"  # the name of the console script, as in setup.cfg


def in_console_script() -> bool:
    """Return whether this process was started as `rn-jax`."""
    return os.path.basename("".join(sys.argv[:1])) == CONSOLE


def _is_command() -> bool:
    """Return whether this process is a command's alone, and not a child of one."""
    if multiprocessing.parent_process() is not None:
        return False
    if sys.argv[:1] != ["-m"]:  # that is so while Python looks for the module to run
        return in_console_script()
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1]
    return "".join(module).startswith(("experiments.", "rn_jax.commands"))


if _is_command():
    leaving.watch()  # the imports take seconds
    try:
        for _name in ("jax", "flax", "matplotlib", "tqdm"):
            with contextlib.suppress(ImportError):  # reported with the extra to install
                importlib.import_module(_name)
    except ValueError as error:
        text = str(error).lower()
        settings = [
            f"{name}={value!r}"
            for name, value in os.environ.items()
            if name.startswith(("JAX_", "FLAX_", "MPL", "TQDM_"))
            and any(f"{quote}{value.lower()}{quote}" in text for quote in "'\"")
        ]
        print(
            f"rn_jax: {' or '.join(settings) or 'An environment variable'} cannot be "
            f"used ({' '.join(str(error).split())}): give it a value that its "
            "documentation lists, or unset it.",
            file=sys.stderr,
        )
        sys.exit(2)
