# SPDX-License-Identifier: Apache-2.0
"""The commands: training by a config."""

import importlib.abc
import importlib.machinery
import os
import sys

# True while Python looks for the module of a command. A program that imports the
# commands gets the original errors.
if sys.argv[:1] == ["-m"]:
    from experiments import leaving

    leaving.watch()  # the imports take seconds
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

# Modules that moved keep their old name for one version.
_MOVED = {"command": "cli", "tables": "papers.tables"} | {
    name: f"training.{name}"
    for name in "environment feed loop pretrained setup workdir".split()
}


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module of `_MOVED` by its old name."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.rpartition(".")
        if package == __name__ and name in _MOVED:
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def exec_module(self, module):
        new = _MOVED[module.__name__.rpartition(".")[2]]
        sys.modules[module.__name__] = importlib.import_module(f"{__name__}.{new}")


sys.meta_path.append(_Moved())
