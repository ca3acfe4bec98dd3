# SPDX-License-Identifier: Apache-2.0
"""Put the commands into wheels; setup.cfg has everything else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCommands(build_py):
    """Copy experiments and configs into the package; rn_jax/commands.py says why.

    An editable install finds them in the repository.
    """

    def run(self):
        """Build the package."""
        super().run()
        if self.editable_mode:
            return
        for name in ("experiments", "configs"):
            target = Path(self.build_lib, "rn_jax", "_commands", name)
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(name, target, ignore=ignored)


setup(cmdclass={"build_py": BuildWithCommands})
