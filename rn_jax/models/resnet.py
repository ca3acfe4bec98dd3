# SPDX-License-Identifier: Apache-2.0
"""Residual and plain networks of Deep Residual Learning (He et al. 2015).

The trunk is shared by the papers after it, whose blocks have files of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
from flax.core import FrozenDict

from rn_jax.errors import InputError, unknown_name
from rn_jax.models.gating import gated_layer, gated_sum
from rn_jax.models.layers import ModuleDef, Shortcut, max_pool
from rn_jax.models.network import Network, check_stem
from rn_jax.models.trunk import BlockInfo, Stage, block_infos
from rn_jax.stochastic_depth import Subset


class Block(nn.Module):
    """Fields of every block of the trunk; each paper adds its own and the call.

    Attributes:
        features: channels of the output.
        stride: of the block, and of its shortcut.
        shortcut: kind of shortcut, see `Shortcut`; None for plain networks.
        conv: called as `conv(features, kernel_size, stride)`.
        norm: called as `norm()`.
        activation: called as `activation(x)`.
    """

    features: int
    stride: int
    shortcut: str | None
    conv: ModuleDef
    norm: ModuleDef
    activation: Callable

    has_shortcut = True


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`
        shortcut = identity(self, x)
        # H(x) = F(x) + x, equation 1; with a gate, x + b F(x).
        return self.activation(
            gated_sum(self, x, shortcut, basic_branch, gate, on_path)
        )


def identity(block: nn.Module, x: jax.Array) -> jax.Array:
    """h(x), the shortcut of a block of that kind, width and stride."""
    parts = block.conv, block.norm
    return Shortcut(
        block.shortcut, block.features, block.stride, *parts, name="shortcut"
    )(x)


def basic_branch(block: nn.Module, x: jax.Array) -> jax.Array:
    """F(x) of the basic block, of whose fields `block` has all."""
    y = block.conv(block.features, 3, block.stride, name="conv1")(x)
    y = block.activation(block.norm(name="bn1")(y))
    y = block.conv(block.features, 3, name="conv2")(y)
    return block.norm(name="bn2")(y)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolution and a shortcut (figure 5, right).

    With `groups` it is the block of ResNeXt (Xie et al. 2017, figure 3c), with a
    larger `base_width` that of wide ResNet-50 and -101.

    Attributes:
        groups: cardinality C, the feature groups of the 3x3 convolution.
        base_width: d, channels of a group where w, a quarter of `features`, is 64; in
            general floor(w d / 64).
        stride_on: "3x3" (fb.resnet.torch, torchvision), or "1x1", the first
            convolution, as in the authors' Caffe models.

    Raises:
        InputError: `stride_on` is neither.
    """

    groups: int = 1
    base_width: int = 64
    stride_on: str = "3x3"

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`
        width = group_width(self.features, self.base_width) * self.groups
        first, second = bottleneck_strides(self)

        def residual(block, x):
            y = block.conv(width, 1, first, name="conv1")(x)
            y = block.activation(block.norm(name="bn1")(y))
            y = block.conv(width, 3, second, groups=block.groups, name="conv2")(y)
            y = block.activation(block.norm(name="bn2")(y))
            y = block.conv(block.features, 1, name="conv3")(y)
            return block.norm(name="bn3")(y)

        shortcut = identity(self, x)
        return self.activation(gated_sum(self, x, shortcut, residual, gate, on_path))


def bottleneck_strides(block: nn.Module) -> tuple[int, int]:
    """Strides of a bottleneck's first 1x1 and of its 3x3 convolution.

    Raises:
        InputError: `stride_on` is neither "1x1" nor "3x3".
    """
    strides = {"1x1": (block.stride, 1), "3x3": (1, block.stride)}
    if block.stride_on not in strides:
        raise InputError(f'stride_on must be "1x1" or "3x3", not {block.stride_on!r}.')
    return strides[block.stride_on]


def group_width(features: int, base_width: int) -> int:
    """Channels of one group of a bottleneck: floor(w d / 64), with w = features / 4."""
    return features // 4 * base_width // 64


class PlainLayer(Block):
    """One 3x3 convolution of a plain network (figure 3, middle): no shortcut.

    Its gate interpolates between the layer (1) and the identity (0). A layer that
    changes the shape has no identity and ignores its gate.

    Attributes:
        downsample: "stride", of the convolution; or "max_pool", a convolution of
            stride 1 and 2x2 max-pooling after it.
    """

    downsample: str = "stride"

    has_shortcut = False

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`

        if self.downsample not in ("stride", "max_pool"):
            raise InputError(
                f'downsample must be "stride" or "max_pool", not {self.downsample!r}.'
            )

        def output(layer):
            stride = layer.stride if layer.downsample == "stride" else 1
            y = layer.conv(layer.features, 3, stride, name="conv")(x)
            y = layer.activation(layer.norm(name="bn")(y))
            return (
                max_pool(y, layer.stride, layer.stride) if stride < layer.stride else y
            )

        if self.stride == 1 and x.shape[-1] == self.features:
            return gated_layer(self, x, output, gate)
        return output(self)


class ResNet(Network):
    """The trunk of the residual papers, and of their plain counterparts.

    A stem, stages of blocks with a stride of 2 between them, global average pooling and
    a fully connected layer. On CIFAR the depth is 6n + 2 with basic and 9n + 2 with
    bottleneck blocks (section 4.2); ImageNet's networks are those of table 1.

    Attributes:
        stage_sizes: blocks per stage.
        features: channels of the output of each stage.
        stem: "small", a 3x3 convolution, for images of 32 pixels; or "imagenet", a 7x7
            convolution of stride 2 and 3x3 max-pooling of stride 2; or, for
            pre-activation units, "imagenet_linear", the same without BatchNorm and
            ReLU, with which the first unit then begins (timm's resnetv2).
        stem_features: channels of the stem; None: those of the first stage.
        shortcut: "A", "A_centered", "A_pooled", "B", "B_linear" or "C"; see `Shortcut`.
        block: `BasicBlock`, `Bottleneck`, `PlainLayer`, a block of another paper here,
            or a module with the fields and the call of `BasicBlock`.
        block_kwargs: further fields of the block, as {"base_width": 128}.
        conv_bias: biases on convolutions, which Huang et al. 2016's code has.
        scan_unroll: blocks laid out one after another per turn of a scan's loop.
        remat: what is computed again in the backward pass instead of kept: "none";
            "cheap", all but convolutions and statistics; "all", whole blocks.
    """

    stage_sizes: Sequence[int]
    features: Sequence[int] = (16, 32, 64)
    stem: str = "small"
    stem_features: int | None = None
    shortcut: str | None = "A"
    block: ModuleDef = BasicBlock
    block_kwargs: Mapping[str, Any] = FrozenDict()
    conv_bias: bool = False
    scan_unroll: int = 1
    remat: str = "cheap"

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        gates: jax.Array | Subset | None = None,
        paths: jax.Array | None = None,
    ) -> jax.Array:
        """See `Network`; an unknown or unfit stem raises an InputError too."""
        check_stem(self.stem, "imagenet_linear")
        if len(self.features) < len(self.stage_sizes):
            raise InputError(
                f"features must have an entry for each of {len(self.stage_sizes)} "
                f"stages, not {self.features}."
            )
        if self.stem == "imagenet_linear" and not self._preactivation:
            raise InputError(
                'stem="imagenet_linear" leaves BatchNorm and ReLU to a pre-activation '
                f"unit; {self.block_class.__name__} is none."
            )
        fields = getattr(self.block_class, "__dataclass_fields__", self.block_kwargs)
        if unknown := sorted(set(self.block_kwargs) - set(fields)):
            own = set(fields) - set(Block.__dataclass_fields__)
            kind = f"field of {self.block_class.__name__}"
            raise unknown_name(kind, unknown[0], own)
        gates, paths = self.check(images, gates, paths, train=train)
        conv, norm = self.layers(train=train, use_bias=self.conv_bias)
        block = partial(
            self.block,
            shortcut=self.shortcut,
            conv=conv,
            norm=norm,
            activation=self.activation,
            **self.block_kwargs,
        )

        window, stride = (3, 1) if self.stem == "small" else (7, 2)
        x = conv(self._stem_features, window, stride, name="stem_conv")(images)
        if self.stem != "imagenet_linear":
            x = self.activation(norm(name="stem_bn")(x))
        if self.stem != "small":
            x = max_pool(x, 3, 2, padding=1)
        for stage, size in enumerate(self.stage_sizes, start=1):
            apart = any(b.apart for b in self.blocks if b.stage == stage)
            first = block if apart else None
            if self._first_activated and stage == 1:
                first = partial(block, activated=True)  # by the stem, for both paths
            x = Stage(
                block,
                first,
                size=size,
                features=self.features[stage - 1],
                stride=self._strides[stage - 1],
                scan_unroll=self.scan_unroll,
                remat=self.remat,
                name=f"stage{stage}",
            )(x, *self.of_stage(stage, gates, paths), train=train)
        if self._preactivation:  # once more after the last sum
            if self._preactivation == "bn_relu":
                x = norm(name="final_bn")(x)
            x = self.activation(x)
        return self.classify(x.mean(axis=(1, 2)))

    @cached_property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """Name, stage, index and shape facts of every block, in order."""
        return block_infos(
            self.stage_sizes,
            self.features,
            self._strides,
            self._stem_features,
            has_shortcut=self.has_shortcuts,
            first_apart=self._first_activated,
        )

    @property
    def _stem_features(self):
        return self.stem_features or self.features[0]

    @property
    def _strides(self):
        return (1,) + (2,) * (len(self.stage_sizes) - 1)

    @property
    def has_shortcuts(self) -> bool:
        """Whether blocks have a shortcut beside what a gate closes."""
        return getattr(self.block_class, "has_shortcut", True)

    @property
    def norm_first(self) -> bool:
        """Whether BatchNorm comes before its convolution."""
        return self._preactivation == "bn_relu"

    @property
    def _preactivation(self):
        return getattr(self.block_class, "preactivation", None)

    @property
    def _first_activated(self):
        """Whether the stem does what a pre-activation unit begins with."""
        return self._preactivation is not None and self.stem != "imagenet_linear"

    @property
    def block_class(self) -> Callable[..., nn.Module]:
        """The block's class, also where `block` is a partial of it."""
        return self.block.func if isinstance(self.block, partial) else self.block
