# SPDX-License-Identifier: Apache-2.0
"""Residual and plain networks of Deep Residual Learning (He et al. 2015)."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rn_jax.errors import InputError
from rn_jax.models.gating import gated_layer, gated_sum
from rn_jax.models.layers import Conv, ModuleDef, Shortcut, torch_linear
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.trunk import (
    BlockInfo,
    Stage,
    block_infos,
    check_paths,
    resolve_gates,
)
from rn_jax.stochastic_depth import StochasticDepth, Subset


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left).

    Attributes:
        features: channels of the output.
        stride: of the first convolution and of the shortcut.
        shortcut: kind of shortcut, see `Shortcut`.
        conv, norm, activation: called as `conv(features, kernel_size, stride)`,
            `norm()` and `activation(x)`.
    """

    features: int
    stride: int
    shortcut: str
    conv: ModuleDef
    norm: ModuleDef
    activation: Callable

    has_shortcut = True

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`

        def residual(block, x):
            y = block.conv(block.features, 3, block.stride, name="conv1")(x)
            y = block.activation(block.norm(name="bn1")(y))
            y = block.conv(block.features, 3, name="conv2")(y)
            return block.norm(name="bn2")(y)

        shortcut = Shortcut(
            self.shortcut,
            self.features,
            self.stride,
            self.conv,
            self.norm,
            name="shortcut",
        )(x)
        # H(x) = F(x) + x, equation 1; with a gate, x + b F(x).
        return self.activation(gated_sum(self, x, shortcut, residual, gate, on_path))


class PlainLayer(nn.Module):
    """One 3x3 convolution of a plain network (figure 3, middle): no shortcut.

    Its gate interpolates between the layer (1) and the identity (0). A layer that
    changes the shape has no identity and ignores its gate.
    """

    features: int
    stride: int
    shortcut: str | None
    conv: ModuleDef
    norm: ModuleDef
    activation: Callable

    has_shortcut = False

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`

        def output(layer):
            y = layer.conv(layer.features, 3, layer.stride, name="conv")(x)
            return layer.activation(layer.norm(name="bn")(y))

        if self.stride == 1 and x.shape[-1] == self.features:
            return gated_layer(self, x, output, gate)
        return output(self)


class ResNet(nn.Module):
    """CIFAR residual network of depth 6n + 2 (section 4.2), or its plain counterpart.

    A 3x3 convolution, stages of blocks with a stride of 2 between them, global average
    pooling and a fully connected layer.

    Attributes:
        stage_sizes: blocks per stage.
        num_classes: size of the logits; None gives the pooled features f[B, C].
        features: channels of each stage.
        shortcut: "A", "A_centered", "A_pooled", "B" or "C"; see `Shortcut`.
        stochastic_depth: None is constant depth.
        block: `BasicBlock`, `PlainLayer`, or a module with their fields and call.
        conv, norm, activation: what the blocks are made of. `conv` takes the fields of
            `Conv`, `norm` those of `nn.BatchNorm`.
        conv_bias: biases on convolutions, which Huang et al. 2016's code has.
        conv_gradient: "auto", or "xla" where forward mode is needed; see `conv2d`.
        axis_name: devices over which BatchNorm's statistics are synchronised.
        scan_unroll: blocks laid out one after another per turn of a scan's loop.
        remat: what is computed again in the backward pass instead of kept: "none";
            "cheap", all but convolutions and statistics; "all", whole blocks.
        dtype: of the computation; parameters and statistics are float32.
    """

    stage_sizes: Sequence[int]
    num_classes: int | None = 10
    features: Sequence[int] = (16, 32, 64)
    shortcut: str | None = "A"
    stochastic_depth: StochasticDepth | None = None
    block: ModuleDef = BasicBlock
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm
    activation: Callable = nn.relu
    conv_bias: bool = False
    conv_gradient: str = "auto"
    axis_name: str | None = None
    scan_unroll: int = 1
    remat: str = "none"
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        gates: jax.Array | Subset | None = None,
        paths: jax.Array | None = None,
    ) -> jax.Array:
        """Logits f[B, num_classes] of normalised images f[B, H, W, C].

        Args:
            images: normalised images.
            train: BatchNorm by the batch's own statistics, and gates drawn from
                `rngs={"gates": key}` if there is stochastic depth and none are given.
            gates: f32[L], f32[L, B] or `Subset`, used as given, in training and at
                test.
            paths: f32[L], 1 for the blocks of a single path, 0 for the others: the
                values stay, gradients take the path alone (Veit et al. 2016).

        Raises:
            InputError: an argument of another shape or dtype than said here; stochastic
                depth or paths for a network without shortcuts.
        """
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"Images must be normalised floating point numbers, not {images.dtype}."
            )
        gates = resolve_gates(self, gates, images.shape[0], train=train)
        check_paths(self, paths)

        conv = partial(
            self.conv,
            use_bias=self.conv_bias,
            gradient=self.conv_gradient,
            dtype=self.dtype,
        )
        norm = partial(
            self.norm,
            use_running_average=not train,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        block = partial(
            self.block,
            shortcut=self.shortcut,
            conv=conv,
            norm=norm,
            activation=self.activation,
        )

        x = conv(self.features[0], 3, name="stem_conv")(images)
        x = self.activation(norm(name="stem_bn")(x))
        for stage, size in enumerate(self.stage_sizes, start=1):
            indices = [b.index for b in self.blocks if b.stage == stage]
            here = slice(indices[0], indices[-1] + 1)
            x = Stage(
                block,
                size=size,
                features=self.features[stage - 1],
                stride=self._strides[stage - 1],
                first_apart=not self.blocks[here.start].same_shape,
                scan_unroll=self.scan_unroll,
                remat=self.remat,
                name=f"stage{stage}",
            )(
                x,
                None if gates is None else gates[here],
                None if paths is None else paths[here],
                train=train,
            )
        x = x.mean(axis=(1, 2))
        if self.num_classes is None:
            return x
        head = nn.Dense(
            self.num_classes, dtype=self.dtype, kernel_init=torch_linear, name="head"
        )
        return head(x)

    @property
    def num_blocks(self) -> int:
        """L, the length of a vector of gates."""
        return sum(self.stage_sizes)

    @cached_property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """Name, stage, index and shape facts of every block, in order."""
        return block_infos(
            self.stage_sizes,
            self.features,
            self._strides,
            self.features[0],
            has_shortcut=self.has_shortcuts,
        )

    @property
    def _strides(self):
        return (1,) + (2,) * (len(self.stage_sizes) - 1)

    @property
    def has_shortcuts(self) -> bool:
        """Whether blocks have a shortcut beside what a gate closes."""
        block = self.block.func if isinstance(self.block, partial) else self.block
        return getattr(block, "has_shortcut", True)
