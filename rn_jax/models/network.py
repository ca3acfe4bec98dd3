# SPDX-License-Identifier: Apache-2.0
"""What every network here has, whatever its paper: its arguments, gates and head."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rn_jax.errors import InputError
from rn_jax.models.layers import Conv, ModuleDef, torch_linear
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.trunk import BlockInfo
from rn_jax.stochastic_depth import StochasticDepth, Subset, sample_gates, test_gates


class Network(nn.Module, kw_only=True):
    """A network for images. Each family adds its fields, its blocks and the call.

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

    An argument of another shape or dtype, and stochastic depth or paths for a network
    without shortcuts, raise an InputError.

    Attributes:
        num_classes: size of the logits; None gives the pooled features f[B, C].
        stochastic_depth: None is constant depth.
        conv: of which the blocks are made; takes the fields of `Conv`.
        norm: of which the blocks are made; takes the fields of `nn.BatchNorm`.
        activation: of the blocks.
        conv_gradient: "auto", or "xla" where forward mode is needed; see `conv2d`.
        axis_name: devices over which BatchNorm's statistics are synchronised.
        dtype: of the computation; parameters and statistics are float32.
    """

    num_classes: int | None = 10
    stochastic_depth: StochasticDepth | None = None
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm
    activation: Callable = nn.relu
    conv_gradient: str = "auto"
    axis_name: str | None = None
    dtype: Any = None

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
        conv = partial(
            self.conv, gradient=self.conv_gradient, dtype=self.dtype, **conv_fields
        )
        norm = partial(
            self.norm,
            use_running_average=not train,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        return conv, norm

    def classify(self, x: jax.Array, **fields: Any) -> jax.Array:
        """The fully connected layer before the softmax; x itself without classes."""
        if self.num_classes is None:
            return x
        fields = {"kernel_init": torch_linear, "dtype": self.dtype, **fields}
        return nn.Dense(self.num_classes, name="head", **fields)(x)

    def check(
        self,
        images: jax.Array,
        gates: jax.Array | Subset | None,
        paths: jax.Array | None,
        *,
        train: bool,
    ) -> jax.Array | Subset | None:
        """Checks the arguments of the call, and gives the gates to use.

        Gates that are not given are drawn from the rng "gates" in training. At test
        they are those of the test rule, as f32[L, 1]: every block is open, and no
        conditional is needed.

        Raises:
            InputError: an argument of another shape or dtype than the class says;
                stochastic depth or paths for a network without shortcuts.
        """
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"Images must be normalised floating point numbers, not {images.dtype}."
            )
        self._check_gates(gates, images.shape[0])
        if paths is not None:
            self._check_paths(paths, gates, images.shape[0])
        if gates is not None or self.stochastic_depth is None:
            return gates
        settings, num_blocks = self.stochastic_depth, self.num_blocks
        if not train:
            return test_gates(settings, num_blocks)[:, None]
        if not (self.has_rng("gates") or self.has_rng("params")):  # which init has
            raise InputError(
                'In training gates are drawn: give rngs={"gates": key}, or the gates.'
            )
        key = self.make_rng("gates")
        return sample_gates(key, settings, num_blocks, images.shape[0])

    def _check_gates(self, gates, batch_size):
        subset = isinstance(gates, Subset)
        if not self.has_shortcuts and (self.stochastic_depth or subset):
            raise InputError(
                "Stochastic depth needs shortcuts: a plain network has no residual "
                "branch to drop."
            )
        num_blocks = self.num_blocks
        if subset:
            _check_shape("gates.indices", gates.indices[:, 0], (num_blocks,))
        elif gates is not None:
            _check_shape("gates", gates, (num_blocks,), (num_blocks, batch_size))

    def _check_paths(self, paths, gates, batch_size):
        if not self.has_shortcuts:
            raise InputError(
                "paths needs shortcuts: a plain network has one path only."
            )
        if isinstance(gates, Subset):
            raise InputError(
                "paths cannot be taken while gates are subsets of examples."
            )
        num_blocks = self.num_blocks
        _check_shape("paths", paths, (num_blocks,), (num_blocks, batch_size))


def check_stem(stem: str, *more: str) -> None:
    """Raises an InputError if `stem` is not "small", "imagenet" or one of `more`."""
    allowed = ("small", "imagenet", *more)
    if stem not in allowed:
        *rest, last = (f'"{name}"' for name in allowed)
        raise InputError(f"stem must be {', '.join(rest)} or {last}, not {stem!r}.")


def _check_shape(name, array, *allowed):
    if array.shape not in allowed and array.shape != (*allowed[0], 1):
        shapes = " or ".join(str(list(shape)) for shape in allowed)
        raise InputError(
            f"{name} must have shape {shapes}, one number per block, "
            f"not {list(array.shape)}."
        )
