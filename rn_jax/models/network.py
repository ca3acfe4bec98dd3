# SPDX-License-Identifier: Apache-2.0
"""The base class of all networks: their call, gates, layers and head."""

import contextlib
import dataclasses
import inspect
import operator
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType, NoneType
from typing import Annotated, Any, Literal, final, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax import lax

from rn_jax.errors import InputError, must_be, unknown_name, whole_number
from rn_jax.models.layers import KERNEL_INITS, Conv, ModuleDef, torch_linear
from rn_jax.models.normalization import BatchNorm, Identity
from rn_jax.models.skipping import at
from rn_jax.models.trunk import BlockInfo
from rn_jax.stochastic_depth import (
    Shaken,
    StochasticDepth,
    Subset,
    eval_gates,
    sample_gates,
)

# Type of a field that counts something. A network checks its fields of this type, of a
# sequence of it and of either or None.
Count = Annotated[int, "at least 1"]


class Network(nn.Module, kw_only=True):
    """A network for images. Each family adds fields, `blocks` and `forward`.

    All are called as

        logits = network(images, train=train, gates=gates, paths=paths)

    with normalised images f[B, H, W, C] and logits f[B, num_classes].

    - `train`: use the batch's own statistics in BatchNorm, dropout with
      `rngs={"dropout": key}`, and, with stochastic depth and without `gates`, draw
      gates with `rngs={"gates": key}`.
    - `gates`: f32[L], f32[L, B], `Subset` or `Shaken`, used as given, in training and
      at test.
    - `paths`: f32[L], 1 for the blocks of a single path and 0 for the others: values
      are unchanged, gradients follow the path alone (Veit et al. 2016, section 4.3).
      f32[L, B] has a path for each example.

    Gates and paths may also be lists, tuples or NumPy arrays; integers and bools become
    float32. An InputError is raised for an argument of another shape, gates or paths
    that are not real numbers, images that are not floating point, and stochastic depth
    or paths in a network without shortcuts.

    Networks can be pickled and copied if their activation has a name in a module.

    Attributes:
        num_classes: size of the logits; None returns the pooled features f[B, C].
        stochastic_depth: settings of stochastic depth; None is constant depth.
        frozen: names of `parts` that always run as at test, with `train=False`: their
            BatchNorm uses and keeps its moving averages, their drawn gates follow the
            test rule, and no gradient reaches their parameters. Gradients still pass
            through them to earlier parts.
        conv: class of the convolutions; has the fields of `Conv`.
        norm: class of the normalisation; has the fields of `nn.BatchNorm`, or has no
            `use_running_average`, such as `nn.LayerNorm` or
            `partial(nn.GroupNorm, num_groups=8)`, normalises each example by itself and
            gets no `axis_name`. "none" is `rn_jax.models.normalization.Identity`.
        kernel_init: initial kernels of the convolutions: "default", those of the paper;
            or a name in `rn_jax.models.layers.KERNEL_INITS`.
        activation: activation function of the blocks.
        conv_gradient: "auto", or "xla" for forward mode and second derivatives, with
            slower convolutions on the CPU and no loop over open blocks; see `conv2d`.
        axis_name: axis of the devices over which BatchNorm is synchronised.
        dtype: dtype of the computation; parameters and statistics are float32.

    Raises:
        InputError: a `Count` is not a whole number of at least 1, a field is none of
            its `Literal` values, `frozen` has the name of no part or is combined with
            the granularity "subset", or `stochastic_depth`, `conv`, `norm`,
            `activation` or `dtype` has another type.
    """

    num_classes: Count | None = 10
    stochastic_depth: StochasticDepth | None = None
    frozen: Sequence[str] = ()
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm
    kernel_init: Literal["default", "he_normal", "xavier_normal", "small_normal"] = (
        "default"
    )
    activation: Callable = nn.relu
    conv_gradient: str = "auto"
    axis_name: str | None = None
    dtype: Any = None

    def __post_init__(self):
        for name, field in self.__dataclass_fields__.items():
            types, value = (field.type, *get_args(field.type)), getattr(self, name)
            if value is None and NoneType in types:
                continue
            if Sequence[Count] in types:
                object.__setattr__(self, name, _each_whole(name, value))
            elif Count in types:
                object.__setattr__(self, name, whole_number(name, value))
            elif get_origin(field.type) is Literal and value not in types[1:]:
                *rest, last = (f'"{allowed}"' for allowed in types[1:])
                raise must_be(name, f"{', '.join(rest)} or {last}", value)
        if not isinstance(self.stochastic_depth, StochasticDepth | None):
            wanted = "rn_jax.StochasticDepth(last_survival=...) or None"
            raise must_be("stochastic_depth", wanted, self.stochastic_depth)
        if self.norm == "none":
            object.__setattr__(self, "norm", Identity)
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
            raise must_be("activation", "a function, such as nn.relu", self.activation)
        if self.dtype is not None and not _is_floating(self.dtype):
            wanted = "a floating-point dtype, such as jnp.bfloat16, or None"
            raise must_be("dtype", wanted, self.dtype)
        object.__setattr__(self, "frozen", _each_name("frozen", self.frozen))
        super().__post_init__()
        self._check_frozen()

    @nn.nowrap
    def _check_frozen(self):
        for part in self.frozen:
            if part not in self.parts:
                raise unknown_name("part to freeze", part, self.parts)
        subset = "subset" == getattr(self.stochastic_depth, "granularity", None)
        if self.frozen and subset:
            raise InputError(
                'frozen cannot be combined with the granularity "subset": a frozen '
                "stage passes all examples through its branches."
            )

    @nn.nowrap
    def __reduce__(self):
        """Return what pickle needs: the fields, with functions by name.

        Most of JAX's activations are transformed functions, which pickle rejects.
        """
        names = {field.name for field in dataclasses.fields(self) if field.init}
        fields = {name: getattr(self, name) for name in names - {"parent"}}
        return _from_fields, (type(self), _mapped(_by_name, fields))

    @property
    def has_shortcuts(self) -> bool:
        """Whether blocks have a shortcut."""
        return False

    @property
    def norm_first(self) -> bool:
        """Whether BatchNorm precedes its convolution."""
        return False

    @property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """Name, stage, index and shape facts of every block, in order."""
        return ()

    @property
    def num_blocks(self) -> int:
        """L, the number of gates."""
        return len(self.blocks)

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """What `frozen` can name, in order: the parts between two of `features`.

        A part has the name of the feature that it computes. Its value lists the names
        of its modules, which are keys of the variables of each collection. A network of
        your own has no parts unless it defines them and calls `trains` in `forward`.
        """
        return {}

    @property
    def frozen_modules(self) -> frozenset[str]:
        """Names of the modules of all frozen parts, keys of the variables."""
        return frozenset(name for part in self.frozen for name in self.parts[part])

    @nn.nowrap
    def trains(self, part: str, train: bool) -> bool:
        """Return whether a part of the network runs as in training."""
        return train and part not in self.frozen

    @final
    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        gates: jax.Array | Subset | Shaken | None = None,
        paths: jax.Array | None = None,
    ) -> jax.Array:
        """Return the logits, f[B, num_classes]; see the class."""
        # (num_blocks,), (num_blocks, 1) or (num_blocks, B) each, or None
        gates, paths = self.resolve_gates(images, gates, paths, train=train)
        forward = partial(type(self).forward, train=train)
        if self.frozen and not self.is_mutable_collection("params"):
            forward = nn.map_variables(forward, "params", self._constant_where_frozen)
        return forward(self, images, gates, paths)  # (B, num_classes)

    @nn.nowrap
    def _constant_where_frozen(self, variables):
        """Return the collection "params" without gradients by frozen modules."""
        constant = partial(jax.tree.map, lax.stop_gradient)
        return {
            collection: {
                name: constant(tree) if name in self.frozen_modules else tree
                for name, tree in params.items()
            }
            for collection, params in variables.items()
        }

    def forward(self, images, gates, paths, *, train: bool) -> jax.Array:
        """Return the logits, f[B, num_classes]; each family defines it.

        Args:
            images: f[B, H, W, C].
            gates: f32[L], f32[L, 1], f32[L, B], `Subset`, `Shaken` or None.
            paths: f32[L], f32[L, B] or None.
            train: whether the network is in training.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward.")

    @property
    def draws_gates(self) -> bool:
        """Whether gates are drawn in training."""
        return self.stochastic_depth is not None

    def draw_gates(
        self, key: jax.Array, batch_size: int, first_index: int | jax.Array = 0
    ) -> jax.Array | Subset | Shaken:
        """Draw the gates of one mini-batch, if `draws_gates`; see `sample_gates`."""
        settings: Any = self.stochastic_depth
        return sample_gates(key, settings, self.num_blocks, batch_size, first_index)

    def eval_gates(self) -> jax.Array:
        """Return the gates at test of a network that `draws_gates`, f32[L]."""
        settings: Any = self.stochastic_depth
        return eval_gates(settings, self.num_blocks)

    def as_at_test_where_frozen(
        self, gates: jax.Array | Subset | Shaken
    ) -> jax.Array | Subset | Shaken:
        """Return drawn gates with those of frozen stages as at test."""
        stages = [f"stage{block.stage}" in self.frozen for block in self.blocks]
        if not any(stages):
            return gates
        at_test = self.eval_gates()[:, None]  # (num_blocks, 1)

        def replaced(gate):  # (num_blocks,), (num_blocks, 1) or (num_blocks, B)
            columns = gate.reshape(self.num_blocks, -1)
            is_frozen = jnp.array(stages)[:, None]
            return jnp.where(is_frozen, at_test, columns).reshape(gate.shape)

        return jax.tree.map(replaced, gates)

    def of_stage(self, stage: int, *per_block: Any) -> tuple[Any, ...]:
        """Return the part of each argument that belongs to a stage's blocks.

        Args:
            stage: number of the stage, from 1.
            *per_block: gates or paths of all blocks, along axis 0, or None.

        Returns:
            The same of the stage's `size` blocks: (size,), (size, B) or None each.
        """
        places = [block.index for block in self.blocks if block.stage == stage]
        return at(per_block, slice(places[0], places[-1] + 1))

    @nn.nowrap
    def for_whole_images(self) -> "Network":
        """Return the network, with the same variables, for dense evaluation.

        It takes images of any size that is not too small, and its logits are means over
        an image. A network that ends in a mean over all pixels is one already.

        Raises:
            InputError: the network takes images of one size only.
        """
        return self

    @nn.nowrap
    def feature(self, name: str, x: jax.Array) -> jax.Array:
        """Return x, and sow it for `rn_jax.features` as the feature of that name."""
        if not self.is_initializing():
            self.sow("features", "by_name", {name: x}, operator.or_, dict)
        return x

    def layers(self, *, train: bool, **conv_fields: Any) -> tuple[ModuleDef, ModuleDef]:
        """Return `conv` and `norm` with the network's settings, to pass to blocks.

        Args:
            train: whether BatchNorm uses the batch's own statistics.
            **conv_fields: further fields of every convolution, such as `use_bias`.
        """
        if self.kernel_init != "default":
            conv_fields["kernel_init"] = KERNEL_INITS[self.kernel_init]
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
            fields = {}  # axis_name would mix the examples of devices
        if _takes(self.norm, "dtype"):
            fields["dtype"] = self.dtype
        return fields

    def classify(self, x: jax.Array, **fields: Any) -> jax.Array:
        """Return the logits of features f[B, C], or the features without classes."""
        if self.num_classes is None:
            return x
        fields = {"kernel_init": torch_linear, "dtype": self.dtype, **fields}
        return nn.Dense(self.num_classes, name="head", **fields)(x)  # (B, num_classes)

    def resolve_gates(
        self, images: jax.Array, gates: Any, paths: Any, *, train: bool
    ) -> tuple[jax.Array | Subset | Shaken | None, jax.Array | None]:
        """Check the arguments of the call and return the gates and paths to use.

        With stochastic depth, missing gates are drawn from the rng "gates" in training.
        At test they follow the test rule, as f32[L, 1]: every block is open, so no
        conditional is needed.

        Args:
            images: f[B, H, W, C].
            gates: f32[L], f32[L, B], `Subset`, `Shaken` or None, as arrays, lists or
                tuples.
            paths: f32[L], f32[L, B] or None, likewise.
            train: whether the network is in training.

        Raises:
            InputError: an argument has another shape or dtype; images have no pixels,
                or no examples in training; or stochastic depth or paths are used
                without shortcuts.
        """
        _check_images(images, train)
        settings, num_blocks = self.stochastic_depth, self.num_blocks
        shapes = (num_blocks,), (num_blocks, images.shape[0])
        subset = isinstance(gates, Subset)
        shaken = isinstance(gates, Shaken)
        if not self.has_shortcuts and (settings or subset or shaken):
            raise InputError(
                "Stochastic depth needs shortcuts: a plain network has no residual "
                "branch to drop."
            )
        if paths is not None:
            if not self.has_shortcuts:
                raise InputError(
                    "paths needs shortcuts: a plain network has a single path."
                )
            if subset:
                raise InputError("paths cannot be combined with gates of subsets.")
            paths = _numbers("paths", paths, *shapes)
        if subset:
            return _checked_subset(gates, num_blocks), paths
        if shaken:
            forward = _numbers("gates.forward", gates.forward, *shapes)
            backward = _numbers("gates.backward", gates.backward, *shapes)
            return Shaken(forward, backward), paths
        if gates is not None:
            return _numbers("gates", gates, *shapes), paths
        if not self.draws_gates:
            return None, paths
        if not train:
            return self.eval_gates()[:, None], paths  # (num_blocks, 1)
        if not (self.has_rng("gates") or self.is_initializing()):
            what = "stochastic depth" if settings else "drop-path"
            raise InputError(
                f'Training with {what} needs rngs={{"gates": key}} or gates.'
            )
        drawn = self.draw_gates(self.make_rng("gates"), images.shape[0])
        return self.as_at_test_where_frozen(drawn), paths

    check = resolve_gates  # the name until 0.1


def _each_whole(name, values):
    """Return the numbers of a field as a tuple of ints, or raise an InputError."""
    try:
        return tuple(whole_number(name, value) for value in values)
    except (TypeError, InputError) as error:
        raise must_be(name, "a tuple of whole numbers of at least 1", values) from error


def _each_name(name, values):
    """Return the names of a field as a tuple of strings, or raise an InputError."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or not all(isinstance(value, str) for value in values):
        raise must_be(name, 'a tuple of names, such as ("stem", "stage1")', values)
    return tuple(values)


def _takes(kind, field):
    """Return whether a class of modules, or a partial of one, has a field."""
    try:
        known = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):  # not a class, or a partial with wrong fields
        return False
    return any(p.name == field or p.kind is p.VAR_KEYWORD for p in known)


def _check_class(name, kind, value, *args, **fields):
    """Raise an InputError unless `value` makes a layer when called as in blocks."""
    try:
        if isinstance(value, nn.Module):
            raise TypeError("It is an instance.")
        inspect.signature(value).bind(*args, name="layer", **fields)
    except (TypeError, ValueError):
        wanted = f"a class of modules {kind}, or a partial of one"
        raise must_be(name, wanted, value) from None


def _group_norm(norm, **fields):
    """Return a layer that raises an InputError if its groups have unequal sizes."""
    layer = norm(**fields)

    def normalize(x):
        groups = layer.num_groups
        if groups and x.shape[-1] % groups:
            raise InputError(
                f"norm has {groups} groups, which do not divide {x.shape[-1]} channels "
                "into equal parts: choose another num_groups."
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
            "Images must be normalised floating-point numbers, not "
            f"{type(images).__name__ if dtype is None else dtype}."
        )
    if images.ndim < 2:
        raise InputError(f"Images must be [B, H, W, C], not of shape {images.shape}.")
    if 0 in images.shape[1:] or (train and images.shape[0] == 0):
        raise InputError(
            f"Images of shape {images.shape} are empty: they must have pixels and, in "
            "training, examples."
        )


def _checked_subset(gates, num_blocks):
    """Return a `Subset` of arrays, or raise an InputError."""
    indices = jnp.asarray(gates.indices)
    per_block = indices.ndim == 2 and len(indices) == num_blocks
    if not (per_block and jnp.issubdtype(indices.dtype, jnp.integer)):
        raise InputError(
            f"gates.indices must be integers of shape [{num_blocks}, m] for m examples "
            f"per block, not {indices.dtype} of shape {list(indices.shape)}."
        )
    return Subset(indices, _numbers("gates.weights", gates.weights, indices.shape))


def _numbers(name, values, *allowed):
    """Return gates or paths as floating-point numbers of one of the allowed shapes."""
    try:
        if any(isinstance(leaf, str) for leaf in jax.tree.leaves(values)):
            raise TypeError("JAX would read some strings as dtypes")
        array = jnp.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:
        wanted = "an array of numbers, one per block"
        raise must_be(name, wanted, values) from error
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
    """A function of a module by its name, jitted again if `jitted`."""

    name: str
    jitted: bool

    def __call__(self, *args):  # a partial needs a callable
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
    """Return a `_Named` for a transformed function of a module, else the value."""
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
    """Return the network of `Network.__reduce__`."""
    return kind(**_mapped(_of_name, fields), parent=None)
