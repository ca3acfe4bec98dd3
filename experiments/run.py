# SPDX-License-Identifier: Apache-2.0
"""Trains a network by a config.

python -m experiments.run --config=configs/resnet110_sd.py[:DATASET] \
    [--workdir=DIR] [--seeds=5] [--config.FIELD=VALUE ...]
"""

import datetime
import glob
import os
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import loop, seeds
from rn_jax.errors import InputError, unknown_name

config_flags.DEFINE_config_file(
    "config", None, "Config file, then a colon and a data set if not its own."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run. By default a new one under runs/."
)

_SEEDS = flags.DEFINE_string(
    "seeds", None, "Trains so many seeds, or those of a list, in folders of their own."
)

_HINT = (
    "configs/default.py has them all, and what is a dict there is given whole, as "
    "--config.model_kwargs=\"{'shortcut': 'B'}\"."
)


def _parse():
    """absl's parser, with one sentence for what it cannot take."""
    flag = flags.FLAGS["config"]
    sys.argv = _data_set_first(sys.argv)
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
        raise InputError(f"The config has no field {name}: {hint or _HINT}") from None
    except (flags.Error, TypeError, ValueError, OSError) as error:
        if missing := re.search(r"No such file or directory: '(.+?)'", str(error)):
            known = glob.glob("configs/[!_]*.py")
            raise unknown_name("config", missing[1], known) from None
        if nested := re.search(r"Override (\S+) can not be applied", str(error)):
            raise InputError(f"{nested[1]} cannot be set alone: {_HINT}") from None
        raise InputError(" ".join(str(error).split())) from error


def _data_set_first(argv):
    """--config.dataset=NAME as --config=FILE:NAME, so that its recipe follows it."""
    names = [a.partition("=")[2] for a in argv if re.match("--?config.dataset=", a)]
    if not names:
        return argv
    is_file = re.compile("(--?config=[^:]+)")
    return [
        f"{found[1]}:{names[-1]}" if (found := is_file.match(a)) else a for a in argv
    ]


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
        workdir = _WORKDIR.value or _default_workdir(config)
        if _SEEDS.value is None:
            loop.train(config, workdir)
        else:
            seeds.train(config, workdir, seeds.parse(_SEEDS.value))
    except InputError as error:
        print(f"rn_jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rn_jax: Interrupted before the first step.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    app.define_help_flags()
    sys.exit(main())
