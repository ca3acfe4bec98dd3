# SPDX-License-Identifier: Apache-2.0
"""Trains a network by a config.

python -m experiments.run --config=configs/resnet110_sd.py[:DATASET] \
    [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

import datetime
import glob
import os
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import loop
from rn_jax.errors import InputError, unknown_name

config_flags.DEFINE_config_file(
    "config", None, "Config file, then a colon and a data set if not its own."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run. By default a new one under runs/."
)


def _parse():
    """absl's parser, with one sentence for what it cannot take."""
    flag = flags.FLAGS["config"]
    try:
        rest = flags.FLAGS(sys.argv)
        if len(rest) > 1:
            raise InputError(f"Unexpected argument {rest[1]!r}: options begin with --.")
        if flag.value is None:
            raise InputError("Name a config, as --config=configs/resnet110_sd.py.")
        return flag.value.to_dict()
    except (AttributeError, KeyError) as error:  # of ConfigDict; a hint is on line 2
        while isinstance(error, Exception):
            error = error.args[0]
        name, _, hint = error.partition("\n")
        hint = hint or "configs/default.py has them all."
        raise InputError(f"The config has no field {name}: {hint}") from None
    except (flags.Error, TypeError, ValueError, OSError) as error:
        if missing := re.search(r"No such file or directory: '(.+?)'", str(error)):
            known = glob.glob("configs/[!_]*.py")
            raise unknown_name("config", missing[1], known) from None
        raise InputError(" ".join(str(error).split())) from error


def _default_workdir(config):
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    name = Path(file.partition(":")[0]).stem
    time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return os.path.join("runs", f"{name}-{config['dataset']}-{time}")


def main() -> int:
    """Runs the command and returns its exit code."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what is meant to be so
    try:
        config = _parse()
        loop.train(config, _WORKDIR.value or _default_workdir(config))
    except InputError as error:
        print(f"rn_jax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    app.define_help_flags()
    sys.exit(main())
