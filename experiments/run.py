# SPDX-License-Identifier: Apache-2.0
"""Train a network by a config.

python -m experiments.run CONFIG[:DATASET] [--FIELD=VALUE ...]
    [--workdir=DIR] [--seeds=5] [--profile=STEPS]
    [--coordinator=HOST:PORT --num_processes=N --process_id=I]
    [--heartbeat_timeout=SECONDS]
    [--format=png,pdf,svg] [--width=INCHES] [--dry_run]
python -m experiments.run --list
"""

import sys
from collections.abc import Sequence
from typing import Any

import configs
from experiments import cli, figures
from experiments import dry_run as preview
from experiments.config import load_config
from experiments.training import loop, many_runs
from rn_jax import parallel
from rn_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    epilog = (
        "CONFIG is a name below or a file; --config=CONFIG and --config.FIELD=VALUE "
        f"mean the same. {configs.FOLDER / 'default.py'} has all fields. Configs: "
        f"{', '.join(configs.names())}"
    )
    return cli.Parser(__doc__, run, epilog).call(
        argv, interrupted="Interrupted before the first step."
    )


def run(
    arguments: Sequence[str] = (),
    *,
    workdir: cli.Path | None = None,
    seeds: many_runs.Seeds | None = None,
    profile: int = 0,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 100,
    style: figures.Style = figures.DEFAULT,
    dry_run: bool = False,
    list: bool = False,
    command: str | None = None,
) -> Sequence[dict[str, Any]]:
    """Train one run, or one for each seed, or print what could be trained.

    Args:
        arguments: options of the config, for `load_config`.
        workdir: folder of the run; None: a new one under runs/.
        seeds: number of seeds, or a list of them; each has its own folder.
        profile: number of steps to write a trace of.
        coordinator: HOST:PORT of process 0, if there are several processes.
        num_processes: number of processes of the run.
        process_id: number of this process: 0, 1, ...
        heartbeat_timeout: seconds until a process counts as dead.
        style: style and formats of the figures; of a finished run they are drawn again.
        dry_run: print the network and the cost, and stop.
        list: print models, data sets and configs.
        command: the command line, which the summary names.

    Returns:
        The summary of each run.

    Raises:
        InputError: bad input that the user can correct.
    """
    if list:
        print(preview.listing())
        return []
    name, config = load_config(arguments)
    chosen = None if seeds is None else many_runs.parse_seeds(seeds)
    if profile < 0 or (profile and seeds is not None):
        raise InputError("--profile is a number of steps, of a run without --seeds.")
    if dry_run:
        print(preview.plan(config))
        return []
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
    with figures.using(style):
        if chosen is None:
            return [loop.train(config, workdir, command=command, profile_steps=profile)]
        return many_runs.train_seeds(config, workdir, chosen, command=command)


if __name__ == "__main__":
    sys.exit(main())
