# SPDX-License-Identifier: Apache-2.0
"""Load a config from its file with overrides, read it back from a run, and check it."""

import ast
import difflib
import importlib.machinery
import json
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict, FieldReference, config_flags

import configs
from configs.default import ALIASES, FIELDS, Config
from experiments.cli import NOT_A_LITERAL
from rn_jax import data, filesystem
from rn_jax.errors import InputError, shown, unknown_name
from rn_jax.filesystem import read_json

# Fields that describe the network of a config's file, and their values for another one.
OF_NETWORK = {"published_error_percent": {}, "expected_to_fail": False}
# Values assumed for fields that older runs lack.
BEFORE: Mapping[str, Any] = {
    "momentum_form": "torch",
    "mean_image_examples": 10_000,
    "init_deepen": False,
    "optimizer": "sgd",
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "trust_coefficient": 0.001,
    "warmup_form": "constant",
    "clip_norm": None,
    "label_smoothing": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "mix_probability": 1.0,
    "ema_decay": None,
    "frozen": [],
    "train_examples": None,
}
# The same for fields that are not needed to read a run, on any machine.
ANYWHERE: Mapping[str, Any] = {
    **dict.fromkeys(["num_devices", "num_workers", "init_from", "data_dir"]),
    **{"micro_batches": 1, "cuda_graphs": True, "data_on_device": None},
}

_ALL_FIELDS = configs.FOLDER / "default.py"
_HINT = f"{_ALL_FIELDS} lists them."
# Fields that are dicts with any entries. Single entries are set here, because
# ml_collections cannot add an entry.
_ENTRY = re.compile(r"--?config\.((?:stochastic_depth|model_kwargs)\.[^=]+)=(.*)", re.S)

# What absl and ml_collections raise for a value or a config file that they cannot read.
_UNREADABLE = (
    *(flags.Error, OSError, TypeError, ValueError, ArithmeticError),
    *(SyntaxError, MemoryError, RecursionError),
)


# --- Loading --------------------------------------------------------------------------


def load_config(arguments: Sequence[str]) -> tuple[str, Config]:
    """Load a config by its name, its data set and its overrides.

    Args:
        arguments: --config=NAME[:DATASET] or --config=FILE[:DATASET], and
            --config.FIELD=VALUE or, in stochastic_depth and model_kwargs,
            --config.FIELD.ENTRY=VALUE. NAME is a name in `configs.index`, and
            configs/NAME.py, where there is no such file, means the same. The last value
            of a field counts, and entries are set after the whole field. Overriding the
            model clears the fields in OF_NETWORK, unless they are given too.

    Returns:
        The name, of a file without ".py", and the config, each field checked.

    Raises:
        InputError: there is no such config or field, a value has a wrong type, or a
            field is set to two values by its two names.
    """
    typed, others, rest = None, [], iter(arguments)
    entries, names = [], []
    for argument in rest:
        option, equals, value = argument.partition("=")
        if re.fullmatch("--?config", option):
            typed = value if equals else next(rest, None)
        elif found := _ENTRY.fullmatch(argument):
            entries.append(found.groups())
        else:
            others.append(argument)
            if re.fullmatch("--?config.dataset", option) and equals:
                names.append(value)
    if typed is None:
        raise InputError("Name a config, such as --config=resnet110_sd.")
    file, dataset = _file_and_data_set(os.path.expanduser(typed))
    config = _from_file(file, *(names[-1:] or dataset))
    model = config.get("model")
    if others:  # ml_collections writes the whole config as text, which is slow
        for alias, name in ALIASES.items():
            config[alias] = FieldReference(None, field_type=FIELDS[name].kind)
        _override(config, others)
    fields = config.to_dict()
    for field, text in entries:
        _set_entry(fields, field, text)
    given = {line.partition("=")[0] for line in overrides(arguments)}
    for alias, name in ALIASES.items():
        if (value := fields.pop(alias, None)) is not None:
            if name in given and fields[name] != value:
                raise InputError(
                    f"{alias}={value} and {name}={fields[name]} are the same field: "
                    "give one of them."
                )
            fields[name] = value
    if "model" in given and fields["model"] != model:
        fields |= {name: none for name, none in OF_NETWORK.items() if name not in given}
    return Path(file).stem, make_config(fields)


def _override(config, arguments):
    """Set fields of a ConfigDict by --config.FIELD=VALUE, converted to their types."""
    values, argv = flags.FlagValues(), ["", *arguments]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        for unknown in values(argv)[1:]:
            raise InputError(f"Unexpected argument {unknown!r}: options begin with --.")
    except (AttributeError, KeyError) as error:  # ConfigDict's hint is on line 2
        reason: Any = error
        while isinstance(reason, Exception):
            reason = reason.args[0]
        if entry := re.search(r"Attempting to lookup: (\S+)", reason):
            raise _no_entries(entry[1]) from None
        name, _, hint = reason.partition("\n")
        raise InputError(f"The config has no field {name}: {hint or _HINT}") from None
    except _UNREADABLE as error:
        if entry := re.search(r"Override (\S+) can not be applied", str(error)):
            raise _no_entries(entry[1]) from None
        raise InputError(" ".join(str(error).split())) from error


def _file_and_data_set(typed):
    """Split FILE[:DATASET], where FILE may have colons too."""
    file, colon, dataset = typed.rpartition(":")
    if not colon or os.path.exists(typed):
        return typed, []
    return file, [dataset]


def _from_file(file, *dataset):
    """Return the config of a name, or what `get_config` of a file returns."""
    folder, name = Path(file).parent, Path(file).stem
    if file in configs.index():  # also if a run's folder has that name
        return configs.get_config(file, *dataset)
    if not os.path.exists(file):
        ours = folder.name == "configs" and os.path.exists(folder / "default.py")
        if (ours or folder == Path("configs")) and name in configs.index():
            return configs.get_config(name, *dataset)
        raise _no_config(file, folder if ours else Path("configs"))
    loader = importlib.machinery.SourceFileLoader("config", file)
    module = types.ModuleType("config")
    try:
        loader.exec_module(module)
        config = module.get_config(*dataset)
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise InputError(f"The config {file} cannot be read: {reason}.") from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"The config {file} must return a ConfigDict, not {shown(config)}."
        )
    return config


def _no_config(file, folder):
    near = difflib.get_close_matches(Path(file).stem, configs.names(), n=5, cutoff=0.6)
    if os.path.basename(file) != Path(file).stem:  # a file, not a name
        near = [f"{folder / name}.py" for name in near]
    hint = f"; similar: {', '.join(near)}" if near else ""
    return InputError(
        f"There is no config {file}{hint}; python -m experiments.run --list lists all."
    )


def _no_entries(field):
    return InputError(
        f"{field} cannot be set: {field.rpartition('.')[0]} is not a dict."
    )


def _set_entry(config, field, text):
    *path, name = field.split(".")
    place = config
    for part in path:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise _no_entries(field)
    try:
        place[name] = ast.literal_eval(text)
    except NOT_A_LITERAL:
        place[name] = text  # a name needs no quotes


def overrides(arguments: Sequence[str]) -> list[str]:
    """Return the overrides among the arguments, such as "epochs=3"."""
    return [
        argument.partition("config.")[2]
        for argument in arguments
        if re.match(r"--?(no)?config\.", argument)
    ]


def field_of(config: Config, field: str) -> Any:
    """Return the value of a field, or of an entry; None if there is no such entry.

    Entries are named as in "stochastic_depth.last_survival".
    """
    found: Any = vars(config)
    for part in ALIASES.get(field, field).split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """Return a short name of each field or entry: the last parts that tell them apart.

    "stochastic_depth.last_survival" is "last_survival", unless another one ends so.
    """
    parts = {field: field.split(".") for field in fields}
    found = {}
    for field, own in parts.items():
        others = [other for name, other in parts.items() if name != field]
        lengths = range(1, len(own))
        unlike = (n for n in lengths if own[-n:] not in [o[-n:] for o in others])
        found[field] = ".".join(own[-next(unlike, len(own)) :])
    return found


# --- Reading back ---------------------------------------------------------------------


def read_fields(file: epath.Path) -> dict[str, Any]:
    """Read a run's config.json, and add the fields that it is too old to have.

    Raises:
        InputError: the file is damaged.
    """
    return {**ANYWHERE, **BEFORE, **read_json(file)}


def read_config(folder: epath.Path) -> Config:
    """Read the config of a run.

    Raises:
        InputError: the folder is not a run, or is a run of an older version.
    """
    file = folder / "config.json"
    if not file.exists():
        below = sorted(folder.iterdir()) if folder.is_dir() else []
        if inside := [run for run in below if (run / "config.json").exists()]:
            names = ", ".join(map(str, inside[:3]))
            raise InputError(f"{folder} holds several runs: name one, such as {names}.")
        if not folder.exists() and folder.parent.is_dir():
            beside = [place.name for place in folder.parent.iterdir()]
            if near := difflib.get_close_matches(folder.name, beside, n=1):
                there = folder.parent / near[0]
                raise InputError(f"There is no folder {folder}; similar: {there}.")
        raise InputError(
            f"{folder} is not a run: python -m experiments.run --config=FILE "
            f"--workdir={filesystem.quoted(str(folder))} makes one."
        )
    fields = read_fields(file)
    if missing := sorted(set(FIELDS) - set(fields)):
        raise InputError(
            f"The run {folder} is of an older version: its config has no {missing[0]}."
        )
    return make_config(fields)


def as_json(config: Config) -> dict[str, Any]:
    """Return the fields as config.json holds them: by name, with lists for tuples."""
    return json.loads(json.dumps(dict(sorted(vars(config).items()))))


# --- Checking -------------------------------------------------------------------------


def make_config(fields: Mapping[str, Any] | ConfigDict) -> Config:
    """Make a config from all its fields.

    Raises:
        InputError: a field is missing or unknown, or as `Config`.
    """
    if isinstance(fields, ConfigDict):
        fields = fields.to_dict()
    for name in fields:
        if name not in FIELDS:
            raise unknown_name("field of the config", name, FIELDS)
    for name in FIELDS:
        if name not in fields:
            raise InputError(f"The config has no {name}: add it, as in {_ALL_FIELDS}.")
    return Config(**fields)


def check_config(config: Config) -> None:
    """Check fields that depend on each other or on the data set.

    Raises:
        InputError: fields contradict each other.
    """
    if config.batch_size % config.micro_batches:
        raise InputError(
            f"micro_batches {config.micro_batches} do not divide a batch_size of "
            f"{config.batch_size}."
        )
    _check_images(config, data.get_spec(config.dataset))
    if config.model is None:
        raise InputError("Set model: a name of rn_jax.list_models().")
    if config.lr_schedule == "plateau" and not 0 < config.lr_factor < 1:
        raise InputError(
            "lr_schedule=plateau needs an lr_factor between 0 and 1, not "
            f"{config.lr_factor}."
        )
    if config.warmup_until_error is not None and not config.learning_rate > 0:
        raise InputError("warmup_until_error needs a learning_rate above 0.")
    if config.warmup_until_error is not None and config.warmup:
        raise InputError(
            "Set either warmup, a length, or warmup_until_error; leave the other one "
            "at its default, 0 or None."
        )
    if config.lr_schedule == "plateau" and config.protocol == "full":
        raise InputError(
            "lr_schedule=plateau needs held-out examples, with protocol=45k5k: the "
            "test set is not used to choose anything."
        )
    if config.init_deepen and config.init_from is None:
        raise InputError("init_deepen needs init_from, the network to deepen.")
    if config.optimizer == "adamw" and config.nesterov:
        raise InputError(
            "nesterov is a rule of sgd and lars: with optimizer=adamw, leave it False."
        )
    if config.epochs is None and config.steps is None:
        raise InputError("Set epochs or steps: the length of the run.")


def _check_images(config, spec):
    side, pad = min(spec.image_shape[:2]), config.augment_pad
    if pad is not None and pad > side:
        raise InputError(
            f"augment_pad must be at most {side}, the side of an image of {spec.name}, "
            f"not {pad}."
        )
    if spec.crops_on_host:
        if config.data_on_device:
            raise InputError(
                f"data_on_device must be None or False for {spec.name}, whose images "
                "are decoded on the host."
            )
        if config.normalization == "channel":
            raise InputError(
                "normalization=channel needs the images in memory; for "
                f"{spec.name}, use mean_image, imagenet_mean, imagenet, unit or "
                "contrast."
            )
        low, high = config.train_scales
        fit = max(config.image_size, config.eval_size) <= config.eval_resize
        if not fit or not config.image_size <= low <= high:
            raise InputError(
                "Crops must fit the images: eval_size and image_size must be at most "
                "eval_resize, and image_size at most the lower of train_scales."
            )
    if spec.image_shape[-1] == 3:
        return
    if config.normalization.startswith("imagenet"):
        raise InputError(
            f"normalization={config.normalization} needs RGB images; {spec.name} is "
            "greyscale: use channel or mean_image."
        )
    if config.augment and (config.color_jitter or config.pca_noise):
        raise InputError(
            f"color_jitter and pca_noise need RGB images; {spec.name} is greyscale."
        )
