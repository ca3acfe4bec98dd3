# SPDX-License-Identifier: Apache-2.0
"""What each field of a config may hold: the type it has in configs/default.py, a range.

A config is what config.json can hold, and small: numbers, text, lists and dicts.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from configs import default
from rn_jax import data, optim, parallel
from rn_jax.errors import InputError, shown, unknown_name

CHOICES = {
    "protocol": ("full", "45k5k"),
    "damaged_records": ("stop", "skip"),
    "train_crop": ("area", "scale"),
    "eval_crops": ("center", "ten"),
    "dtype": ("float32", "bfloat16", "float16"),
    "matmul_precision": (None, "bfloat16", "tensorfloat32", "float32"),
    "lr_schedule": ("piecewise", "cosine", "plateau"),
    "lr_drops_unit": ("steps", "epochs", "fraction"),
    "warmup_unit": ("steps", "epochs", "fraction"),
    "normalization": data.NORMALIZATIONS,
    "momentum_form": optim.MOMENTUM_FORMS,
    "weight_decay_on": ("kernels", "all"),
    "parallelism": parallel.MODES,
    "batch_norm": ("global", "device"),
    "batch_norm_at_test": ("moving", "exact"),
}
# What runs did that were begun before a field was there, whose config.json lacks it.
BEFORE: Mapping[str, Any] = {"momentum_form": "torch", "mean_image_examples": 10_000}
AT_LEAST = {
    "steps": 1,
    "epochs": 1,
    "batch_size": 1,
    "eval_batch_size": 1,
    "eval_every_epochs": 1,
    "eval_every_steps": 0,
    "plateau_patience": 1,
    "plateau_drops": 1,
    "micro_batches": 1,
    "batch_norm_examples": 1,
    "mean_image_examples": 1,
    "color_jitter": 0,
    "pca_noise": 0,
    "bias_rate": 0,
    "augment_pad": 0,
    "image_size": 1,
    "eval_size": 1,
    "eval_resize": 1,
    "num_devices": 1,
    "num_workers": 0,
    "warmup": 0,
    "warmup_until_error": 0,
    "checkpoint_every_steps": 0,
    "log_every_steps": 0,
    "learning_rate": 0,
    "warmup_learning_rate": 0,
    "lr_factor": 0,
    "momentum": 0,
    "weight_decay": 0,
    "aux_loss_weight": 0,
    "stochastic_depth_from_epoch": 0,
    "seed": 0,
    "split_seed": 0,
}
_LARGEST_SIDE = 4096  # of an image, in pixels
# Of what would take all memory, or as many processes, before anything else fails.
AT_MOST = {
    "batch_size": 2**16,
    "eval_batch_size": 2**16,
    "image_size": _LARGEST_SIDE,
    "eval_size": _LARGEST_SIDE,
    "eval_resize": _LARGEST_SIDE,
    "num_devices": 1024,
    "num_workers": 1024,
    "warmup_until_error": 100,
    "lr_factor": 1,
}

_LARGEST_INT = 2**31  # int32 holds what is below
_LARGEST_FLOAT = 1e38  # float32 holds 3.4e38
_LARGEST_OF_NETWORK = 2**14  # a width, a depth, ... in model_kwargs
_LONGEST = 4096  # characters of a text, entries of a list or dict
_DEEPEST = 4  # lists and dicts within each other

_KINDS: dict[type, tuple[str, Any]] = {
    bool: ("True or False", bool),
    int: ("a whole number", int),
    float: ("a number", (int, float)),
    str: ("text", str),
    tuple: ("a tuple", (list, tuple)),  # config.json knows lists alone
    ConfigDict: ("a dict", Mapping),
    object: ("anything", object),
}


@functools.cache
def types() -> dict[str, tuple[type, bool]]:
    """Type of every field by configs/default.py, and whether it may be None."""
    config = default.get_config()
    return {
        name: (config.get_type(name), isinstance(value, FieldReference))
        for name, value in config.items(preserve_field_references=True)
    }


def check(config: Mapping[str, Any]) -> None:
    """Checks each field by itself.

    Raises:
        InputError: a field that is missing or unknown, or a value of another type or
            out of range.
    """
    known = types()
    for name in config:
        if name not in known:
            raise unknown_name("field of the config", name, known)
    for name, (kind, optional) in known.items():
        if name not in config:
            raise InputError(f"The config has no {name}; configs/default.py has it.")
        value = config[name]
        if not (optional and value is None):
            _check_type(name, value, kind, optional)
            _check_plain(name, value)
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise InputError(
                f"{name} must be one of {', '.join(map(str, choices))}, not "
                f"{config[name]!r}."
            )
    for name, least in AT_LEAST.items():
        value, most = config[name], AT_MOST.get(name, math.inf)
        if value is not None and not value >= least:
            raise InputError(f"{name} must be at least {least}, not {value}.")
        if value is not None and not value <= most:
            raise InputError(f"{name} must be at most {most:,}, not {value}.")
    _check_entries(config)


def _check_type(name, value, kind, optional):
    words, accepted = _KINDS[kind]
    is_bool = isinstance(value, bool) and kind in (int, float)
    if is_bool or not isinstance(value, accepted):
        or_none = " or None" if optional else ""
        raise InputError(f"{name} must be {words}{or_none}, not {shown(value)}.")


def _check_plain(name, value, depth=0):
    """Raises an InputError unless config.json can hold the value, and it is small."""
    if isinstance(value, bool | None):
        return
    if isinstance(value, int):
        most = _LARGEST_INT
        if name.startswith("model_kwargs"):
            most = _LARGEST_OF_NETWORK
        if abs(value) >= most:
            limit = "2^31" if most == _LARGEST_INT else f"{most:,}"
            raise InputError(f"{name} must be below {limit}, not {shown(value)}.")
    elif isinstance(value, float):
        if not abs(value) <= _LARGEST_FLOAT:  # nan is neither
            raise InputError(
                f"{name} must be a finite number of at most {_LARGEST_FLOAT:g}, not "
                f"{value}."
            )
    elif isinstance(value, str):
        if len(value) > _LONGEST or "\0" in value:
            raise InputError(
                f"{name} must be text of at most {_LONGEST:,} characters without "
                f"zeros, not {shown(value)}."
            )
    elif isinstance(value, list | tuple | Mapping):
        if len(value) > _LONGEST or depth == _DEEPEST:
            raise InputError(
                f"{name} must have at most {_LONGEST:,} entries and {_DEEPEST} levels, "
                f"not {shown(value)}."
            )
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, entry in entries:
            if isinstance(value, Mapping) and not isinstance(key, str):
                raise InputError(f"{name} must have names, not {shown(key)}.")
            _check_plain(f"{name}.{key}", entry, depth + 1)
    else:
        raise InputError(
            f"{name} must be made of numbers, text, lists and dicts, which config.json "
            f"can hold, not {shown(value)}."
        )


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_entries(config):
    drops = config["lr_drops"]
    if not all(map(_is_number, drops)) or any(drop < 0 for drop in drops):
        raise InputError(f"lr_drops must be numbers of 0 or more, not {shown(drops)}.")
    if list(drops) != sorted(set(drops)):
        raise InputError(
            f"lr_drops must come one after another, not as {shown(drops)}."
        )
    scales = config["train_scales"]
    if len(scales) != 2 or not all(
        _is_number(s) and isinstance(s, int) and 1 <= s <= _LARGEST_SIDE for s in scales
    ):
        raise InputError(
            f"train_scales must be two whole numbers from 1 to {_LARGEST_SIDE:,}, not "
            f"{shown(scales)}."
        )
    for name, percent in config["published_error_percent"].items():
        if not _is_number(percent) or not 0 <= percent <= 100:
            raise InputError(
                f"published_error_percent.{name} must be from 0 to 100, not "
                f"{shown(percent)}."
            )
