# SPDX-License-Identifier: Apache-2.0
"""What every network here has, whatever its paper: its arguments, gates and head."""

import contextlib
import dataclasses
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any, final

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from rn_jax.errors import InputError, shown, whole_number
from rn_jax.models.layers import Conv, ModuleDef, torch_linear
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.trunk import BlockInfo
from rn_jax.stochastic_depth import StochasticDepth, Subset, eval_gates, sample_gates

# Fields of the families that count something, and those that do so for each stage.
_COUNTS = (
    "num_classes",
    "stem_features",
    "growth_rate",
    "depth",
    "width",
    "last_features",
    "scan_unroll",
)
_COUNTS_BY_STAGE = ("stage_sizes", "features", "hidden")
_MAY_BE_NONE = ("num_classes", "stem_features", "hidden")


class Network(nn.Module, kw_only=True):
    """A network for images. Each family adds its fields, its blocks and `forward`.

    All are called as

        logits = network(images, train=train, gates=gates, paths=paths)

    with images f[B, H, W, C], normalised; logits f[B, num_classes].

    - `train`: BatchNorm by the batch's own statistics, dropout by `rngs={"dropout":
      key}`, and gates drawn from `rngs={"gates": key}` if there is stochastic depth and
      none are given.
    - `gates`: f32[L], f32[L, B] or `Subset`, used as given, in training and at test.
    - `paths`: f32[L], 1 for the blocks of a single path, 0 for the others: the values
      stay, gradients take the path alone (Veit et al. 2016). f32[L, B] has a path for
      each example.

    Gates and paths may also be lists, tuples or NumPy arrays; integers and bools become
    float32. An argument of another shape, gates or paths that are no real numbers,
    images that are not floating point, and stochastic depth or paths for a network
    without shortcuts raise an InputError.

    Networks can be pickled and copied, with any activation that has a name in a module.

    Attributes:
        num_classes: size of the logits; None gives the pooled features f[B, C].
        stochastic_depth: None is constant depth.
        conv: of which the blocks are made; takes the fields of `Conv`.
        norm: of which the blocks are made; takes the fields of `nn.BatchNorm`, or is
            without `use_running_average`, such as `nn.LayerNorm` or
            `partial(nn.GroupNorm, num_groups=8)`: then it normalises each example by
            itself, in training and at test, and is not given `axis_name`.
        activation: of the blocks.
        conv_gradient: "auto", or "xla" where forward mode is needed; see `conv2d`.
        axis_name: devices over which BatchNorm's statistics are synchronised.
        dtype: of the computation; parameters and statistics are float32.

    Raises:
        InputError: a number of classes, blocks or channels that is not a whole number
            of at least 1; or a `stochastic_depth`, `conv`, `norm`, `activation` or
            `dtype` of another kind.
    """

    num_classes: int | None = 10
    stochastic_depth: StochasticDepth | None = None
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm
    activation: Callable = nn.relu
    conv_gradient: str = "auto"
    axis_name: str | None = None
    dtype: Any = None

    def __post_init__(self):
        for name in (*_COUNTS, *_COUNTS_BY_STAGE):
            if name not in self.__dataclass_fields__:
                continue
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                of_kind = _each_whole if name in _COUNTS_BY_STAGE else whole_number
                object.__setattr__(self, name, of_kind(name, value))
        if not isinstance(self.stochastic_depth, StochasticDepth | None):
            raise InputError(
                "stochastic_depth must be rn_jax.StochasticDepth(last_survival=...) or "
                f"None, not {shown(self.stochastic_depth)}."
            )
        _check_class(
            "conv",
            f"with the fields of {Conv.__module__}.Conv",
            self.conv,
            *(16, 3, 1),  # features, kernel_size, stride
            **self._conv_fields,
        )
        _check_class(
            "norm",
            "such as nn.BatchNorm or nn.LayerNorm",
            self.norm,
            **self._norm_fields(train=False),
        )
        if not callable(self.activation):
            raise InputError(
                "activation must be a function, such as nn.relu, not "
                f"{shown(self.activation)}."
            )
        if self.dtype is not None and not _is_floating(self.dtype):
            raise InputError(
                "dtype must be a floating-point dtype, such as jnp.bfloat16, or None, "
                f"not {shown(self.dtype)}."
            )
        super().__post_init__()

    @nn.nowrap
    def __reduce__(self):
        """Pickle the fields, with functions by name.

        Most of JAX's activations are transformed functions, which pickle refuses.
        """
        names = {field.name for field in dataclasses.fields(self) if field.init}
        fields = {name: getattr(self, name) for name in names - {"parent"}}
        return _from_fields, (type(self), _mapped(_by_name, fields))

    @property
    def has_shortcuts(self) -> bool:
        """Whether blocks have a shortcut beside what a gate closes."""
        return False

    @property
    def norm_first(self) -> bool:
        """Whether BatchNorm comes before its convolution."""
        return False

    @property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """Name, stage, index and shape facts of every block, in order."""
        return ()

    @property
    def num_blocks(self) -> int:
        """L, the length of a vector of gates."""
        return len(self.blocks)

    @final
    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        gates: jax.Array | Subset | None = None,
        paths: jax.Array | None = None,
    ) -> jax.Array:
        """Return the logits, f[B, num_classes]; see the class."""
        gates, paths = self.resolve_gates(images, gates, paths, train=train)
        return self.forward(images, gates, paths, train=train)

    def forward(
        self,
        images: jax.Array,
        gates: jax.Array | Subset | None,
        paths: jax.Array | None,
        *,
        train: bool,
    ) -> jax.Array:
        """Return the logits; each family defines what comes in between."""
        raise NotImplementedError(f"{type(self).__name__} must define forward.")

    def of_stage(self, stage: int, *per_block: Any) -> tuple[Any, ...]:
        """The part of each argument that belongs to a stage's blocks.

        Args:
            stage: from 1.
            *per_block: gates or paths of all blocks, or None, which stays None.
        """
        places = [block.index for block in self.blocks if block.stage == stage]
        here = slice(places[0], places[-1] + 1)
        return tuple(None if array is None else array[here] for array in per_block)

    def layers(self, *, train: bool, **conv_fields: Any) -> tuple[ModuleDef, ModuleDef]:
        """`conv` and `norm` with the network's settings, ready to be given to blocks.

        Args:
            train: whether BatchNorm takes the batch's own statistics.
            **conv_fields: more fields of every convolution, as `use_bias`.
        """
        conv = partial(self.conv, **self._conv_fields, **conv_fields)
        norm = partial(self.norm, **self._norm_fields(train))
        if _takes(self.norm, "num_groups"):
            norm = partial(_group_norm, norm)
        return conv, norm

    @property
    def _conv_fields(self):
        return {"gradient": self.conv_gradient, "dtype": self.dtype}

    @nn.nowrap
    def _norm_fields(self, train):
        fields: dict[str, Any]
        fields = {"use_running_average": not train, "axis_name": self.axis_name}
        if not _takes(self.norm, "use_running_average"):
            fields = {}  # nor axis_name, which would mix the devices' examples
        if _takes(self.norm, "dtype"):
            fields["dtype"] = self.dtype
        return fields

    def classify(self, x: jax.Array, **fields: Any) -> jax.Array:
        """The fully connected layer before the softmax; x itself without classes."""
        if self.num_classes is None:
            return x
        fields = {"kernel_init": torch_linear, "dtype": self.dtype, **fields}
        return nn.Dense(self.num_classes, name="head", **fields)(x)

    def resolve_gates(
        self,
        images: jax.Array,
        gates: Any,
        paths: Any,
        *,
        train: bool,
    ) -> tuple[jax.Array | Subset | None, jax.Array | None]:
        """Check the arguments of the call, and return the gates and paths to use.

        Gates that are not given are drawn from the rng "gates" in training. At test
        they are those of the test rule, as f32[L, 1]: every block is open, and no
        conditional is needed.

        Raises:
            InputError: an argument of another shape or dtype than the class says;
                images without pixels, or without examples in training; stochastic
                depth or paths for a network without shortcuts.
        """
        _check_images(images, train)
        gates = self._checked_gates(gates, images.shape[0])
        if paths is not None:
            paths = self._checked_paths(paths, gates, images.shape[0])
        if gates is not None or self.stochastic_depth is None:
            return gates, paths
        settings, num_blocks = self.stochastic_depth, self.num_blocks
        if not train:
            return eval_gates(settings, num_blocks)[:, None], paths
        if not (self.has_rng("gates") or self.is_initializing()):
            raise InputError(
                'In training gates are drawn: give rngs={"gates": key}, or the gates.'
            )
        key = self.make_rng("gates")
        return sample_gates(key, settings, num_blocks, images.shape[0]), paths

    check = resolve_gates  # the name until 0.1

    def _checked_gates(self, gates, batch_size):
        subset = isinstance(gates, Subset)
        if not self.has_shortcuts and (self.stochastic_depth or subset):
            raise InputError(
                "Stochastic depth needs shortcuts: a plain network has no residual "
                "branch to drop."
            )
        num_blocks = self.num_blocks
        if subset:
            indices = jnp.asarray(gates.indices)
            of_blocks = indices.ndim == 2 and len(indices) == num_blocks
            if not (of_blocks and jnp.issubdtype(indices.dtype, jnp.integer)):
                raise InputError(
                    "gates.indices must be integers of shape "
                    f"[{num_blocks}, m], those of m examples per block, not "
                    f"{indices.dtype} of shape {list(indices.shape)}."
                )
            weights = _numbers("gates.weights", gates.weights, indices.shape)
            return Subset(indices, weights)
        if gates is None:
            return None
        return _numbers("gates", gates, (num_blocks,), (num_blocks, batch_size))

    def _checked_paths(self, paths, gates, batch_size):
        if not self.has_shortcuts:
            raise InputError(
                "paths needs shortcuts: a plain network has one path only."
            )
        if isinstance(gates, Subset):
            raise InputError(
                "paths cannot be taken while gates are subsets of examples."
            )
        num_blocks = self.num_blocks
        return _numbers("paths", paths, (num_blocks,), (num_blocks, batch_size))


def check_stem(stem: str, *more: str) -> None:
    """Raises an InputError if `stem` is not "small", "imagenet" or one of `more`."""
    allowed = ("small", "imagenet", *more)
    if stem not in allowed:
        *rest, last = (f'"{name}"' for name in allowed)
        raise InputError(f"stem must be {', '.join(rest)} or {last}, not {stem!r}.")


def _each_whole(name, values):
    """Return numbers of a field as a tuple of ints, or raise an InputError."""
    try:
        return tuple(whole_number(name, value) for value in values)
    except (TypeError, InputError) as error:
        raise InputError(
            f"{name} must be a tuple of whole numbers of at least 1, not "
            f"{shown(values)}."
        ) from error


def _takes(kind, field):
    """Whether a class of modules, or a partial of one, has a field."""
    try:
        known = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):  # not a class, or a partial with wrong fields
        return False
    return any(p.name == field or p.kind is p.VAR_KEYWORD for p in known)


def _check_class(name, kind, value, *args, **fields):
    """Raise an InputError unless a layer can be made of `value` as blocks make it."""
    try:
        if isinstance(value, nn.Module):
            raise TypeError("It is a layer already.")
        inspect.signature(value).bind(*args, name="layer", **fields)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} must be a class of modules {kind}, or a partial of one, not "
            f"{shown(value)}."
        ) from None


def _group_norm(norm, **fields):
    """Return a layer of groups of channels, with an InputError if they are unequal."""
    layer = norm(**fields)

    def normalize(x):
        groups = layer.num_groups
        if groups and x.shape[-1] % groups:
            raise InputError(
                f"norm has {groups} groups, which do not divide {x.shape[-1]} channels "
                "into equal parts: give a num_groups that does."
            )
        return layer(x)

    return normalize


def _is_floating(dtype):
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def _check_images(images, train):
    dtype = getattr(images, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            "Images must be normalised floating point numbers, not "
            f"{type(images).__name__ if dtype is None else dtype}."
        )
    if images.ndim < 2:
        raise InputError(f"Images must be [B, H, W, C], not of shape {images.shape}.")
    if 0 in images.shape[1:] or (train and images.shape[0] == 0):
        raise InputError(
            f"Images of shape {images.shape} hold nothing to be "
            f"{'trained on' if train else 'classified'}."
        )


def _numbers(name, values, *allowed):
    """Return gates or paths as floating-point numbers of one of the allowed shapes."""
    try:
        if any(isinstance(leaf, str) for leaf in jax.tree.leaves(values)):
            raise TypeError("JAX warns of some strings, and takes them for dtypes")
        array = jnp.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{name} must be an array of numbers, one per block, not {shown(values)}."
        ) from error
    if array.dtype == bool or jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(jnp.float32)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"{name} must be real numbers, not {array.dtype}.")
    if array.shape not in allowed and array.shape != (*allowed[0], 1):
        shapes = " or ".join(str(list(shape)) for shape in allowed)
        raise InputError(
            f"{name} must have shape {shapes}, one number per block, "
            f"not {list(array.shape)}."
        )
    return array


# --- Pickle ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Named:
    """A function of a module by its name, jitted once more if `jitted`."""

    name: str
    jitted: bool

    def __call__(self, *args):  # a partial wants something that can be called
        return _of_name(self)(*args)


def _mapped(change, value):
    """Return a field's value with `change` applied inside dicts and partials."""
    if isinstance(value, partial):
        function, *args = (_mapped(change, v) for v in (value.func, *value.args))
        fields = {name: _mapped(change, v) for name, v in value.keywords.items()}
        return partial(function, *args, **fields)
    if isinstance(value, Mapping):
        return FrozenDict({name: _mapped(change, v) for name, v in value.items()})
    return change(value)


def _by_name(value):
    """Return a `_Named` for a transformed function of a module, others unchanged."""
    inside = getattr(value, "__wrapped__", None)
    if inside is None or isinstance(value, FunctionType):
        return value
    for function, jitted in ((value, False), (inside, True)):
        name = f"{function.__module__}:{function.__qualname__}"
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            if pkgutil.resolve_name(name) is function:
                return _Named(name, jitted)
    return value


def _of_name(value):
    """Undo `_by_name`."""
    if not isinstance(value, _Named):
        return value
    function = pkgutil.resolve_name(value.name)
    return jax.jit(function) if value.jitted else function


def _from_fields(kind, fields):
    """Return the network that `Network.__reduce__` took apart."""
    return kind(**_mapped(_of_name, fields), parent=None)
