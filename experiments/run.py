# SPDX-License-Identifier: Apache-2.0
"""Train a network by a config.

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
from experiments import cli
from experiments import dry_run as preview
from experiments.config import load_config
from experiments.training import loop
from experiments.training import seeds as several
from rn_jax import parallel
from rn_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = cli.Parser(__doc__, run)
    add, path = parser.add_argument, parser.add_path
    path("--workdir", help="folder of the run; default: a new one under runs/")
    add("--seeds", help="number of seeds, or a list of them; each has its own folder")
    add("--profile", type=int, help="number of steps to write a trace of")
    add("--coordinator", help="HOST:PORT of process 0, if there are several processes")
    add("--num_processes", type=int, help="number of processes of the run")
    add("--process_id", type=int, help="number of this process: 0, 1, ...")
    add("--heartbeat_timeout", type=int, help="seconds until a process counts as dead")
    add(
        "--dry_run",
        action="store_true",
        help="print the network and the cost, and stop",
    )
    add("--list", action="store_true", help="print models, data sets and configs")
    parser.epilog = f"configs (in configs/): {', '.join(configs.names())}"
    return parser.call(argv, interrupted="Interrupted before the first step.")


def run(
    arguments: Sequence[str] = (),
    *,
    workdir: str | None = None,
    seeds: str | None = None,
    profile: int = 0,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 100,
    dry_run: bool = False,
    list: bool = False,
    command: str | None = None,
) -> None:
    """Train one run, or one for each seed, or print what could be trained.

    The keywords are the command's options; `arguments` are those of the config, for
    `load_config`. A `command` is reported in the summary.

    Raises:
        InputError: something that the user can mend, in one sentence.
    """
    if list:
        print(preview.listing())
        return
    name, config = load_config(arguments)
    if profile < 0 or (profile and seeds is not None):
        raise InputError("--profile is a number of steps, of a run without --seeds.")
    if dry_run:
        print(preview.plan(config))
        return
    joined = parallel.join_processes(
        coordinator=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        heartbeat_timeout=heartbeat_timeout,
    )
    if joined and workdir is None:
        raise InputError(
            "Several processes need the same --workdir, on a file system that all of "
            "them see."
        )
    workdir = workdir or cli.new_workdir(f"{name}-{config.dataset}")
    if seeds is None:
        loop.train(config, workdir, command=command, profile_steps=profile)
    else:
        several.train(config, workdir, several.parse(seeds), command=command)


if __name__ == "__main__":
    sys.exit(main())
