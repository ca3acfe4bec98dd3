# SPDX-License-Identifier: Apache-2.0
"""The commands: training by a config."""

import importlib
import os
import sys
from typing import Any

# True while Python looks for the module of a command. A program that imports the
# commands gets the original errors.
if sys.argv[:1] == ["-m"]:
    try:  # These read settings from the environment when they are imported.
        for _name in ("jax", "flax", "matplotlib", "tqdm"):
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

# Modules that moved into a package keep their old name for one version.
_MOVED = dict.fromkeys(
    "environment feed loop pretrained progress setup trained workdir".split(),
    "training",
) | {"tables": "papers"}


def __getattr__(name: str) -> Any:
    if package := _MOVED.get(name):
        return importlib.import_module(f"experiments.{package}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
