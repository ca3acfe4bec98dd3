# SPDX-License-Identifier: Apache-2.0
"""The length of a run, and its learning rate by step and by how training goes."""

from collections.abc import Callable

from configs.default import Config
from rn_jax import optim
from rn_jax.errors import InputError

_MOST_STEPS = 2**31  # they are counted in int32
_TO_ZERO = {"cosine": optim.cosine_schedule, "linear": optim.linear_schedule}


def count_steps(config: Config, steps_per_epoch: int) -> int:
    """Return the number of steps of a whole run.

    Raises:
        InputError: there are 2^31 or more.
    """
    lengths = [config.steps, config.epochs and config.epochs * steps_per_epoch]
    steps = min(length for length in lengths if length is not None)
    if steps >= _MOST_STEPS:
        raise InputError(
            f"epochs={config.epochs} of {steps_per_epoch} steps are {steps:,} steps; a "
            "run must have fewer than 2^31 steps."
        )
    return steps


def make_schedule(config: Config, steps_per_epoch: int, total_steps: int) -> Callable:
    """Make the learning rate by step, which `make_feedback`'s factor multiplies.

    Raises:
        InputError: a drop or the warm-up at a step of 2^31 or more, or drops before it.
    """
    units = {"steps": 1, "epochs": steps_per_epoch, "fraction": total_steps}

    def in_steps(name, length, unit):
        steps = int(length * units[unit])
        if steps >= _MOST_STEPS:
            raise InputError(
                f"{name} has {length}, which is {steps:,} steps; a run must have "
                "fewer than 2^31 steps."
            )
        return steps

    warmup = {
        "warmup_steps": in_steps("warmup", config.warmup, config.warmup_unit),
        "warmup_learning_rate": config.warmup_learning_rate,
        "warmup_form": config.warmup_form,
    }
    if config.lr_schedule == "plateau":
        return optim.piecewise_schedule(config.learning_rate, **warmup)
    if config.lr_schedule in _TO_ZERO:
        to_zero = _TO_ZERO[config.lr_schedule]
        return to_zero(config.learning_rate, total_steps=total_steps, **warmup)
    unit = config.lr_drops_unit
    return optim.piecewise_schedule(
        config.learning_rate,
        drops=[in_steps("lr_drops", drop, unit) for drop in config.lr_drops],
        factor=config.lr_factor,
        **warmup,
    )


def make_feedback(config: Config) -> optim.RateController:
    """Make the factor of the rate that depends on training and validation errors."""
    until = config.warmup_until_error
    factor = 1.0
    if until is not None:
        factor = config.warmup_learning_rate / config.learning_rate
    by_plateau = config.lr_schedule == "plateau"
    return optim.RateController(
        warmup_factor=factor,
        warmup_until_error=until,
        plateau_factor=config.lr_factor,
        plateau_patience=config.plateau_patience if by_plateau else None,
        plateau_drops=config.plateau_drops,
    )
