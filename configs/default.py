# SPDX-License-Identifier: Apache-2.0
"""All fields of an experiment, with the recipe of He et al. 2015 on CIFAR-10.

It has no network: the other files here set one, and what their paper does differently.
He et al. only subtract the mean image. "mean_image" also divides by one number, which
does not matter to a network with BatchNorm after its first convolution; on ImageNet it
does not divide, and the mean is that of a sample's centre crops, kept with the run.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from ml_collections import ConfigDict, FieldReference

from rn_jax import data, optim, parallel
from rn_jax.errors import InputError, must_be, shown


@dataclass(frozen=True)
class Range:
    """The least and the greatest value of a number."""

    least: float = -math.inf
    most: float = math.inf


LARGEST_SIDE = 4096  # of an image, in pixels

# Types with their limits. Numbers that would exhaust memory or processes before
# anything else fails have an upper limit.
Count = Annotated[int, Range(1)]
Number = Annotated[int, Range(0)]
Amount = Annotated[float, Range(0)]
Batch = Annotated[int, Range(1, 2**16)]
Pixels = Annotated[int, Range(1, LARGEST_SIDE)]
Percent = Annotated[float, Range(0, 100)]
Share = Annotated[float, Range(0, 1)]
Alpha = Annotated[float, Range(0, 1000)]  # float32 draws from Beta(alpha, alpha)
Unit = Literal["steps", "epochs", "fraction"]  # of the run's length
Schedule = Literal["piecewise", "cosine", "linear", "plateau"]
MatmulPrecision = Literal["bfloat16", "tensorfloat32", "float32"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The fields of an experiment: types, choices or limits, and defaults.

    Values are those that config.json can hold: tuples within fields become lists.

    Raises:
        InputError: a value has another type or is out of range.
    """

    # Network
    model: str | None = None  # a name of rn_jax.list_models()
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)  # {'shortcut': 'B'}
    stochastic_depth: Mapping[str, Any] | None = None  # or {'last_survival': 0.5}
    stochastic_depth_from_epoch: Number = 0  # epochs of constant depth before it begins
    frozen: tuple[str, ...] = ()  # parts that stay as they are: ("stem", "stage1")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the computation
    matmul_precision: MatmulPrecision | None = None  # rounding of float32 products
    init_from: str | None = None  # run or weights; the classifier is reinitialised
    init_deepen: bool = False  # deepen that network, and keep its function

    # Data
    dataset: str = "cifar10"  # cifar10, cifar100, svhn_cropped, mnist, ..., digits
    data_dir: str | None = None  # None: $TFDS_DATA_DIR or ~/tensorflow_datasets
    damaged_records: Literal["stop", "skip"] = "stop"  # skip: report them on stderr
    protocol: Literal["full", "45k5k"] = "full"  # 45k5k: hold out a tenth to validate
    train_examples: Count | None = None  # random training examples; None: all
    split_seed: Number = 0  # selects the held-out examples, and train_examples
    normalization: Annotated[str, data.NORMALIZATIONS] = "mean_image"  # of pixels
    augment: bool = True  # zero-pad and crop, flip, change colours, mix
    augment_pad: Number | None = None  # pixels; None: the data set's default
    augment_flip: bool | None = None  # None: the data set's default
    color_jitter: Amount = 0.0  # strength: 0.4 in fb.resnet.torch
    pca_noise: Amount = 0.0  # std: 0.1 in Krizhevsky et al. 2012
    mixup_alpha: Alpha = 0.0  # of Beta(alpha, alpha): 1 in Zhang et al. 2018 on CIFAR
    cutmix_alpha: Alpha = 0.0  # the same for boxes: 1 in Yun et al. 2019
    mix_probability: Share = 1.0  # of a batch: 0.5 in Yun et al. 2019 on CIFAR

    # Data of imagenet2012 only, which worker processes decode and crop
    train_crop: Literal["area", "scale"] = "area"  # 8 to 100 %; scale: after resizing
    train_scales: tuple[Pixels, Pixels] = (256, 480)  # shorter side before "scale"
    image_size: Pixels = 224  # of training crops
    eval_resize: Pixels = 256  # shorter side before evaluation crops
    eval_size: Pixels = 224  # of evaluation crops
    eval_crops: Literal["center", "ten"] = "center"  # ten: corners, centre, mirrored
    mean_image_examples: Count = 10_000  # training images for mean_image
    num_workers: Annotated[int, Range(0, 1024)] | None = None  # None: one per core

    # Length: whichever ends first
    epochs: Count | None = None  # None: `steps` is the length
    steps: Count | None = 64_000  # None: `epochs` is the length
    batch_size: Batch = 128  # over all devices
    eval_batch_size: Batch = 500  # over all devices; affects speed and memory only

    # Optimiser
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd"  # lars: SGD with a rate by layer
    learning_rate: Amount = 0.1  # after the warm-up, before the first drop
    lr_schedule: Schedule = "piecewise"  # cosine, linear: to 0
    lr_drops: tuple[Amount, ...] = (32_000, 48_000)  # where the rate drops
    lr_drops_unit: Unit = "steps"  # of lr_drops
    lr_factor: Annotated[float, Range(0, 1)] = 0.1  # of the rate at a drop or plateau
    plateau_patience: Count = 5  # evaluations without a lower validation error
    plateau_drops: Count = 3  # at most
    warmup: Amount = 0.0  # time at warmup_learning_rate at the start
    warmup_form: Annotated[str, optim.WARMUP_FORMS] = "constant"  # linear: rising
    warmup_unit: Unit = "steps"  # of warmup
    warmup_until_error: Percent | None = None  # training error; needs warmup=0
    warmup_learning_rate: Amount = 0.01  # as in He et al. 2015 for ResNet-110
    momentum: Amount = 0.9  # of the running sum of gradients; beta1 of AdamW
    momentum_form: Annotated[str, optim.MOMENTUM_FORMS] = "caffe"  # rate in velocity
    nesterov: bool = False  # True: Nesterov's momentum, as in the Torch codes
    adam_beta2: Annotated[float, Range(0, 0.999999)] = 0.999  # of AdamW
    adam_epsilon: Annotated[float, Range(1e-30)] = 1e-8  # of AdamW
    trust_coefficient: Amount = 0.001  # of LARS
    clip_norm: Annotated[float, Range(1e-30)] | None = None  # of the gradient, L2
    weight_decay: Amount = 1e-4  # factor of the L2 penalty's gradient; in AdamW of w
    label_smoothing: Share = 0.0  # of targets, spread: 0.1 in Szegedy et al. 2016
    aux_loss_weight: Amount = 0.3  # of each auxiliary head's loss, in GoogLeNet
    weight_decay_on: Literal["kernels", "all"] = "kernels"  # all: biases too
    bias_rate: Amount = 1.0  # factor of the rate for biases; 2 in the Caffe codes
    ema_decay: Share | None = None  # of the averages that are evaluated; None: none
    micro_batches: Count = 1  # sequential parts of a batch; also named accum_steps

    # Randomness and devices
    seed: Number = 0  # of the parameters, the order of examples, augmentation and gates
    num_devices: Annotated[int, Range(1, 1024)] | None = None  # None: all, or CPU cores
    parallelism: Annotated[str, parallel.MODES] = "pmap"  # or shard_map: clusters.md
    cuda_graphs: bool = True  # NVIDIA GPUs: a step is one graph, see docs/clusters.md
    data_on_device: bool | None = None  # training images; None: on accelerators
    batch_norm: Literal["global", "device"] = "global"  # device: statistics per device
    batch_norm_at_test: Literal["moving", "exact"] = "moving"  # exact: recomputed
    batch_norm_examples: Count = 10_000  # training examples for exact statistics

    # While it runs
    eval_every_epochs: Count = 1  # evaluate and save; always done at the end
    eval_every_steps: Number = 0  # if not 0, replaces eval_every_epochs
    checkpoint_every_steps: Number = 0  # save between evaluations too; 0: never
    log_every_steps: Number = 100  # log a step in metrics.jsonl; 0: never
    compilation_cache: str = "~/.cache/rn_jax/compilation"  # "": no cache on disk

    # What the paper reports, for comparison only
    paper: str = "He et al. 2015"  # where the recipe comes from
    published_error_percent: Mapping[str, Percent] = field(default_factory=dict)  # test
    expected_to_fail: bool = False  # True: the paper's network does not train

    def __post_init__(self) -> None:
        """Check each field by itself."""
        for name, value in vars(self).items():
            object.__setattr__(self, name, _checked(name, value, FIELDS[name]))
        if list(self.lr_drops) != sorted(set(self.lr_drops)):
            raise InputError(f"lr_drops must increase, unlike {shown(self.lr_drops)}.")


class Field(NamedTuple):
    """The values that a field can have.

    Attributes:
        kind: bool, int, float, str, tuple, or Mapping.
        optional: whether the field can be None.
        choices: all values; None: any value of that kind.
        limits: the range of a number.
        entry: the values of each entry of a tuple or Mapping; None: any.
        length: the number of entries of a tuple; None: any.
    """

    kind: type
    optional: bool = False
    choices: tuple[str | None, ...] | None = None
    limits: Range = Range()
    entry: "Field | None" = None
    length: int | None = None


def _field(hint: Any) -> Field:
    optional = type(None) in get_args(hint)
    if optional:
        hint = get_args(hint)[0]
    choices, limits, entry, length = None, Range(), None, None
    if get_origin(hint) is Annotated:
        hint, limit = get_args(hint)
        choices, limits = (None, limit) if isinstance(limit, Range) else (limit, limits)
    if get_origin(hint) is Literal:
        hint, choices = str, get_args(hint)
    if choices and optional:
        choices = (None, *choices)
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if parts and Any not in parts:  # of tuple[X, ...], tuple[X, X] or Mapping[str, X]
        entry = _field(parts[kind is Mapping])
    if kind is tuple and ... not in parts:
        length = len(parts)
    return Field(kind, optional, choices, limits, entry, length)


# Other names by which fields can be set.
ALIASES = {"accum_steps": "micro_batches"}

FIELDS: Mapping[str, Field] = {f.name: _field(f.type) for f in fields(Config)}


def get_config(dataset: str = "cifar10") -> ConfigDict:
    """Return the defaults for the data set that --config=FILE:DATASET names."""
    config = ConfigDict()
    for name, value in vars(Config(dataset=dataset)).items():
        kind = FIELDS[name].kind
        if FIELDS[name].optional:  # a reference has a type though it is None
            kind = object if kind is Mapping else kind
            value = FieldReference(value, field_type=kind)
        config[name] = value
    return config


# The optimiser of the Torch codes.
TORCH_SGD: Any = {"momentum_form": "torch", "nesterov": True, "weight_decay_on": "all"}


def recipe(dataset: str, base: Callable = get_config, **fields: Any) -> ConfigDict:
    """Return the recipe of `base` with these fields, adapted to the data set.

    A length in `epochs` replaces one in steps.
    """
    config = base(dataset)
    if "epochs" in fields:
        config.steps = None
    config.update(fields)
    return with_dataset(config)


# The least and most epochs of a recipe on large data sets: 64,000 steps are 164 epochs
# of CIFAR and 6 of ImageNet, and 500 epochs of SVHN are twelve times the work of 500 of
# CIFAR. Huang et al. 2016 train for 50 epochs on SVHN; the longest recipe made for
# ImageNet, GoogLeNet's in Caffe, has 250.
_EPOCHS = {"svhn_cropped": (10, 50), "imagenet2012": (30, 250)}


def with_dataset(config: ConfigDict) -> ConfigDict:
    """Return the recipe, adapted to its data set where the paper's does not suit it.

    `digits` has 1,437 images of 8x8 pixels, 22 steps an epoch. At the papers' rate of
    0.1, deep networks do not begin to learn in so few steps; that of AdamW, whose steps
    have the size of the rate, suits any data set. On large data sets, the
    number of epochs is limited to the range in `_EPOCHS`; drops, and a warm-up in
    epochs, move in proportion. The normalisation is one that the data set supports.
    """
    if config.dataset in _EPOCHS:
        _limit_epochs(config, *_EPOCHS[config.dataset])
    kind = config.normalization
    if config.dataset in ("mnist", "fashion_mnist") and kind.startswith("imagenet"):
        config.normalization = "channel"  # ImageNet's means are of three channels
    if config.dataset == "imagenet2012" and kind == "channel":
        config.normalization = "imagenet"  # the same, without all images in memory
    if config.dataset == "digits":
        config.epochs = 30
        config.steps = None
        config.batch_size = 64
        if config.optimizer != "adamw":
            config.learning_rate = 0.01
        config.lr_drops = (0.5, 0.75)
        config.lr_drops_unit = "fraction"
        config.warmup = 0
        config.warmup_until_error = None
        config.normalization = "channel"
        config.protocol = "full"
        config.train_examples = None
        config.eval_every_steps = 0
        config.lr_schedule = "piecewise"
        config.batch_norm_at_test = "moving"
        config.momentum_form = "torch"  # as in the kept runs
    return config


def _limit_epochs(config, least, most):
    examples = data.get_spec(config.dataset).num_train
    steps_per_epoch = examples // config.batch_size
    lengths = [config.epochs, config.steps and config.steps / steps_per_epoch]
    epochs = min(length for length in lengths if length)
    ratio = min(max(epochs, least), most) / epochs
    if ratio == 1:
        return
    if config.epochs:
        config.epochs = round(config.epochs * ratio)
    if config.steps:
        config.steps = round(config.steps * ratio)
    if config.lr_drops_unit == "epochs":
        config.lr_drops = tuple(drop * ratio for drop in config.lr_drops)
    if config.lr_drops_unit == "steps":
        config.lr_drops = tuple(round(drop * ratio) for drop in config.lr_drops)
    if config.warmup_unit == "epochs":
        config.warmup *= ratio


# --- Checks ---------------------------------------------------------------------------

_ANY = Field(object, optional=True)

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
    Mapping: ("a dict", Mapping),
    object: ("anything", object),
}


def in_words(field: Field) -> str:
    """Return the values that a field can have, in words."""
    words = _KINDS[field.kind][0]
    if field.choices is not None:
        words = ", ".join(f"`{choice}`" for choice in field.choices)
    elif field.kind in (int, float):
        least, most = field.limits.least, field.limits.most
        words += f" from {least:,}" if least > -math.inf else ""
        words += f" to {most:,}" if most < math.inf else ""
    elif field.kind is tuple and field.entry:
        entries = "entries" if field.length is None else f"{field.length} entries"
        words += f" of {entries}, each {in_words(field.entry)}"
    return f"{words}, or `None`" if field.optional and not field.choices else words


def _checked(name: str, value: Any, field: Field, depth: int = 0) -> Any:
    """Return a value of a field, or raise an InputError."""
    if value is None and field.optional:
        return None
    words, accepted = _KINDS[field.kind]
    is_bool = isinstance(value, bool) and field.kind in (int, float)
    if is_bool or not isinstance(value, accepted):
        or_none = " or None" if field.optional else ""
        raise must_be(name, f"{words}{or_none}", value)
    value = _plain(name, value, field.entry or _ANY, depth)
    if field.choices is not None and value not in field.choices:
        raise must_be(name, f"one of {', '.join(map(str, field.choices))}", value)
    if field.kind in (int, float):
        least, most = field.limits.least, field.limits.most
        if value < least:
            raise must_be(name, f"at least {least}", value)
        if value > most:
            raise must_be(name, f"at most {most:,}", value)
    if field.length is not None and len(value) != field.length:
        raise InputError(f"{name} must have {field.length} entries, not {len(value)}.")
    return tuple(value) if field.kind is tuple else value


def _plain(name, value, entry, depth):
    """Return a value as config.json holds it, or raise an InputError.

    Its entries, if it has any, are checked as those of the field `entry`.
    """
    if isinstance(value, list | tuple | Mapping):
        if len(value) > _LONGEST or depth == _DEEPEST:
            raise InputError(
                f"{name} must have at most {_LONGEST:,} entries and {_DEEPEST} levels, "
                f"not {shown(value)}."
            )
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        found = {}
        for key, inner in entries:
            if isinstance(value, Mapping) and not isinstance(key, str):
                raise InputError(f"{name} must have text as keys, not {shown(key)}.")
            found[key] = _checked(f"{name}.{key}", inner, entry, depth + 1)
        return found if isinstance(value, Mapping) else list(found.values())
    if isinstance(value, bool | None):
        return value
    if isinstance(value, int):
        most = _LARGEST_INT
        if name.startswith("model_kwargs"):
            most = _LARGEST_OF_NETWORK
        if abs(value) >= most:
            limit = "2^31" if most == _LARGEST_INT else f"{most:,}"
            raise must_be(name, f"below {limit}", value)
    elif isinstance(value, float):
        if not abs(value) <= _LARGEST_FLOAT:  # nan is neither
            raise must_be(name, f"a finite number of at most {_LARGEST_FLOAT:g}", value)
    elif isinstance(value, str):
        if len(value) > _LONGEST or "\0" in value:
            wanted = f"text of at most {_LONGEST:,} characters without null bytes"
            raise must_be(name, wanted, value)
    else:
        raise InputError(
            f"{name} must consist of numbers, text, lists and dicts, which config.json "
            f"can hold, not {shown(value)}."
        )
    return value
