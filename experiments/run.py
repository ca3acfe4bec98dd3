# SPDX-License-Identifier: Apache-2.0
"""Trains a network by a config.

python -m experiments.run --config=configs/resnet110_sd.py[:DATASET]
    [--workdir=DIR] [--seeds=5] [--profile=STEPS] [--config.FIELD=VALUE ...]
    [--coordinator=HOST:PORT --num_processes=N --process_id=I]
    [--heartbeat_timeout=SECONDS]
    [--dry_run]
python -m experiments.run --list
"""

import sys
from collections.abc import Sequence

import configs
from experiments import cli, dry_run
from experiments.config import load_config
from experiments.training import loop, seeds
from rn_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return cli.exit_code(lambda: _train(argv))


def _train(argv):
    parser = cli.Parser(__doc__)
    add, path = parser.add_argument, parser.add_path
    path("--workdir", help="folder of the run; default: a new one under runs/")
    add("--seeds", help="so many seeds, or a list, in folders of their own")
    add("--profile", type=int, default=0, help="steps to write a trace of")
    add("--coordinator", help="HOST:PORT of process 0, if there are several")
    add("--num_processes", type=int, help="of this run")
    add("--process_id", type=int, help="of this one: 0, 1, ...")
    add("--heartbeat_timeout", type=int, default=100, help="until one counts as dead")
    add("--dry_run", action="store_true", help="print what the run would be, and stop")
    add("--list", action="store_true", help="print models, data sets and configs")
    parser.epilog = f"configs (in configs/): {', '.join(configs.names())}"
    options, rest = parser.parse_with_config(argv)
    if options.list:
        print(dry_run.listing())
        return
    name, config = load_config(rest)
    if options.profile < 0 or (options.profile and options.seeds is not None):
        raise InputError("--profile is a number of steps, of a run without --seeds.")
    if options.dry_run:
        print(dry_run.plan(config))
        return
    cli.join_processes(options)
    this_command = cli.as_typed("run", argv)
    workdir = options.workdir or cli.new_workdir(f"{name}-{config.dataset}")
    if options.seeds is None:
        loop.train(config, workdir, command=this_command, profile_steps=options.profile)
    else:
        chosen = seeds.parse(options.seeds)
        seeds.train(config, workdir, chosen, command=this_command)


if __name__ == "__main__":
    sys.exit(main())
