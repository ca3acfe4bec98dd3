# SPDX-License-Identifier: Apache-2.0
"""The commands: training by a config."""

import importlib.abc
import importlib.machinery
import sys

import rn_jax.startup  # noqa: F401  # before a command imports anything else

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
