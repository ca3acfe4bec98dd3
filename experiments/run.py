# SPDX-License-Identifier: Apache-2.0
"""Trains a network by a config.

python -m experiments.run --config=configs/resnet110_sd.py[:DATASET] \
    [--workdir=DIR] [--config.FIELD=VALUE ...]
"""

import datetime
import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from experiments import loop
from rn_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, then a colon and a data set if not its own."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run. By default a new one under runs/."
)


def _parse(argv):
    """absl's parser, with one sentence for what it cannot take."""
    app.define_help_flags()
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise InputError(f"Unexpected argument {rest[1]!r}: options begin with --.")
        if _CONFIG.value is None:
            raise InputError("Name a config, as --config=configs/resnet110_sd.py.")
        return _CONFIG.value.to_dict()
    except AttributeError as error:
        name = " ".join(str(error).replace("\n", ". ").split())
        raise InputError(
            f"The config has no field {name} (configs/default.py)."
        ) from None
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error


def _default_workdir(config):
    flag = next(a for a in sys.argv if a.lstrip("-").startswith("config"))
    name = Path(flag.partition("=")[2].partition(":")[0]).stem
    time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return os.path.join("runs", f"{name}-{config['dataset']}-{time}")


def main() -> int:
    """Runs the command and returns its exit code."""
    try:
        config = _parse(sys.argv)
        loop.train(config, _WORKDIR.value or _default_workdir(config))
    except InputError as error:
        print(f"rn_jax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
