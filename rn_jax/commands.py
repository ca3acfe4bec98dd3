# SPDX-License-Identifier: Apache-2.0
"""The commands from anywhere: `rn-jax COMMAND`, and for a program of your own.

In the repository the commands are the packages `experiments` and `configs`. As packages
in site-packages, these names would overwrite, or hide, those of other projects. So a
wheel has both in the folder `_commands` of this package (setup.py puts them there), and
a process that needs them has that folder first on its path.
"""

import contextlib
import sys
from pathlib import Path

from rn_jax.errors import InputError, package_needed

FOLDER = Path(__file__).parent / "_commands"  # in a wheel only


def make_importable() -> None:
    """Put `experiments` and `configs` first on this process's path.

    A program that imports them calls it before, so that it runs in any folder and with
    an installed package.
    """
    for folder in (FOLDER, FOLDER.parents[1]):
        if (folder / "experiments" / "cli.py").is_file():
            if sys.path[:1] != [str(folder)]:
                sys.path.insert(0, str(folder))
            return


def extra_needed() -> contextlib.AbstractContextManager[None]:
    """Turn an `ImportError` in the body into the sentence on the commands' extra."""
    return package_needed("The commands need the extra train", "'rn_jax[train]'")


def main() -> int:
    """Run the command that the first argument names, and return its exit code.

    It is the console script, and the end of a script that first registers networks or
    data sets of its own.
    """
    make_importable()
    try:
        with extra_needed():
            from experiments import cli
    except InputError as error:
        print(f"rn_jax: {error}", file=sys.stderr)
        return error.exit_code
    return cli.of_script()


if __name__ == "__main__":
    sys.exit(main())
