# SPDX-License-Identifier: Apache-2.0
"""Train one config under several seeds, as the papers do.

He et al. 2015 give the best of 5 runs and their mean and standard deviation, He et al.
2016 the median of 5.
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from typing import Any

from etils import epath

from configs.default import Config
from experiments.training import loop
from rn_jax import parallel
from rn_jax.errors import InputError
from rn_jax.filesystem import replace_file


def parse(text: str) -> list[int]:
    """Return the seeds of a list, "0,3,7", or of a number, "5" for 0 to 4.

    Raises:
        InputError: the text is neither, or has a seed twice.
    """
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or text == "0":
        raise InputError(
            f"--seeds must be a number of seeds, as 5, or a list of them, as 0,3,7, "
            f"not {text!r}."
        )
    seeds = [int(part) for part in parts]
    if len(seeds) == 1:
        return list(range(seeds[0]))
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds has a seed twice: {text}.")
    return seeds


def train(
    config: Config,
    path: str,
    seeds: Sequence[int],
    *,
    command: str | None = None,
    resumed_by: str | None = None,
) -> list[dict[str, Any]]:
    """Train every seed in turn, in a folder of its own, then summarize them.

    A finished seed is not trained again, and a stopped one is resumed. When all have
    ended, seeds.json has the error of each and the best, median, mean and standard
    deviation.

    Args:
        config: config of all runs; its seed is not used.
        path: the folder of the folders seed0, seed1, ...
        seeds: seeds of the parameters, the order of examples, augmentation and gates.
        command, resumed_by: see `loop.train`.

    Returns:
        The summary of each run.

    Raises:
        InputError: as `loop.train`.
    """
    folder = epath.Path(path)
    summaries, diverged = [], None
    for seed in seeds:
        run = dataclasses.replace(config, seed=seed)
        try:
            summary = loop.train(
                run, place(path, seed), command=command, resumed_by=resumed_by or path
            )
        except loop.NotFiniteError as error:
            diverged = error  # raised once the others are trained
            continue
        summaries.append(summary)
    if diverged is not None:
        raise diverged
    if not parallel.is_first_process():
        return summaries
    result: dict[str, Any] = {"seeds": list(seeds)}
    for name in ("test_error_percent", "test_error_at_best_val_percent"):
        if all(summary[name] is not None for summary in summaries):
            result[name] = describe([summary[name] for summary in summaries])
    replace_file(folder / "seeds.json", json.dumps(result, indent=2) + "\n")
    shown = result.get("test_error_at_best_val_percent", result["test_error_percent"])
    at_best = "test_error_at_best_val_percent" in result
    deviation = "" if shown["std"] is None else f" +- {shown['std']:.2f}"
    print(
        f"{len(seeds)} seeds{', at the best validation epoch' if at_best else ''}: "
        f"test error median {shown['median']:.2f} %, mean {shown['mean']:.2f}"
        f"{deviation}, best {shown['best']:.2f}."
    )
    return summaries


def place(path: str, seed: int) -> str:
    """Return the folder of one seed."""
    return str(epath.Path(path) / f"seed{seed}")


def describe(values: Sequence[float]) -> dict[str, Any]:
    """Return the values and their best, median, mean and standard deviation.

    The deviation has n - 1 in its denominator, and is None for a single value.
    """
    return {
        "each": list(values),
        "best": min(values),
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }
