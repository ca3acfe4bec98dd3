# SPDX-License-Identifier: Apache-2.0
"""Inception-ResNet-v2 (Szegedy et al. 2017, arXiv 1602.07261), as in its authors' code.

A residual branch is an Inception module followed by a linear 1x1 convolution, times a
scale of 0.1 to 0.3, without which very wide networks do not train (section 3.3):

    y = ReLU(x + scale * F(x)).

The network is that of the authors' code, TF-Slim's `inception_resnet_v2`, and of timm.
It has 10, 20 and 10 blocks, twice as many as the paper's figure 15, and a simpler stem.
TF-Slim's auxiliary head and timm's output without classes are left out. BatchNorm has a
scale, as in timm; in TF-Slim the scale is 1.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from rn_jax.errors import must_be
from rn_jax.models.googlenet import ConvUnit
from rn_jax.models.layers import ModuleDef, average_pool, max_pool
from rn_jax.models.network import Count
from rn_jax.models.resnet import Block
from rn_jax.models.starts import ResidualNetwork
from rn_jax.models.trunk import (
    BlockInfo,
    Stage,
    block_infos,
    default_unroll,
    stage_parts,
)

# A tower is a sequence of convolutions (features, kernel_size); a module is several
# towers on the same input, side by side along the channels.
Tower = tuple[tuple[int, int | tuple[int, int]], ...]

MIXED_5B: tuple[Tower, ...] = (
    ((96, 1),),
    ((48, 1), (64, 5)),
    ((64, 1), (96, 3), (96, 3)),
)
# Of these reductions the last convolution of each tower has stride 2 and no padding.
MIXED_6A: tuple[Tower, ...] = (
    ((384, 3),),
    ((256, 1), (256, 3), (384, 3)),
)
MIXED_7A: tuple[Tower, ...] = (
    ((256, 1), (384, 3)),
    ((256, 1), (288, 3)),
    ((256, 1), (288, 3), (320, 3)),
)


def towers(
    x: jax.Array, unit: ModuleDef, module: Sequence[Tower], *, reduce: bool = False
) -> list[jax.Array]:
    """Return the output of each tower of a module.

    Args:
        x: f[B, H, W, C].
        unit: called as `unit(features, kernel_size, stride, name=...)`.
        module: the towers.
        reduce: whether the last convolution of each tower has stride 2.
    """
    outputs = []
    for i, tower in enumerate(module, start=1):
        y = x
        for j, (features, kernel_size) in enumerate(tower, start=1):
            stride = 2 if reduce and j == len(tower) else 1
            y = unit(features, kernel_size, stride, name=f"tower{i}_conv{j}")(y)
        outputs.append(y)
    return outputs


def conv_unit(conv, norm, activation, width, features, kernel_size, stride=1, **fields):
    """Return a `ConvUnit` of `width` times as many features; stride 2 has no padding.

    Args:
        conv, norm, activation, kernel_size, stride: as in `ConvUnit`.
        width: factor of the number of channels.
        features: channels of the output of the whole network.
        **fields: further fields, such as `name`.
    """
    if stride == 2:
        conv = partial(conv, padding=0)
    channels = scaled(features, width)
    return ConvUnit(channels, kernel_size, stride, conv, norm, activation, **fields)


def scaled(features: int, width: float) -> int:
    """Return `width` times as many features, rounded, at least 1."""
    return max(1, round(width * features))


class InceptionResidual(Block):
    """ReLU(x + scale * F(x)): a module, and a 1x1 convolution with bias.

    Attributes:
        width: factor of the number of channels within the branch.
        scale: class attribute: factor of the branch.
        module: class attribute: towers of the branch.
    """

    width: float = 1.0

    scale: ClassVar[float]
    module: ClassVar[tuple[Tower, ...]]

    def residual(self, x, *, train: bool):
        """Return scale * F(x), f[B, H, W, features], from f[B, H, W, features]."""
        parts = self.conv, self.norm, self.activation, self.width
        branches = towers(x, partial(conv_unit, *parts), self.module)
        y = jnp.concatenate(branches, axis=-1)
        y = self.conv(self.features, 1, use_bias=True, name="up")(y)
        return self.scale * y


class Block35(InceptionResidual):
    """Inception-ResNet-A, on the grid of 35x35 (figure 16; `block35` of the code)."""

    scale = 0.17
    module = (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3)))


class Block17(InceptionResidual):
    """Inception-ResNet-B, on the grid of 17x17 (figure 17; `block17` of the code)."""

    scale = 0.10
    module = (((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1))))


class Block8(InceptionResidual):
    """Inception-ResNet-C, on the grid of 8x8 (figure 19; `block8` of the code)."""

    scale = 0.20
    module = (((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1))))


class LastBlock8(Block8):
    """The last block: neither scale nor activation after the sum (the code)."""

    scale = 1.0

    def after(self, y, *, train: bool):
        """Return y."""
        return y


class InceptionResNetV2(ResidualNetwork):
    """Three stages of residual Inception blocks with reductions between them.

    The last block, which differs, is a stage of its own.

    Attributes:
        stage_sizes: number of blocks of the first three stages.
        width: factor of all numbers of channels; 1 in the paper.
        stem: "imagenet", for images of 299 pixels and at least 75; or "small", for
            images of 32 pixels, without strides, pooling and unpadded convolutions.
        dropout: rate of dropout before the classifier (figure 15: keep 0.8).
        scan_unroll, remat: as in `ResNet`.

    Raises:
        InputError: `stem` is unknown, `stage_sizes` does not have three entries, or
            images are too small for the stem.
    """

    stage_sizes: Sequence[Count] = (10, 20, 9)
    width: float = 1.0
    stem: Literal["small", "imagenet"] = "imagenet"
    dropout: float = 0.2
    scan_unroll: Count | None = None
    remat: str = "cheap"

    has_shortcuts = True

    def __post_init__(self):
        super().__post_init__()
        if len(self.stage_sizes) != 3:
            raise must_be("stage_sizes", "three numbers of blocks", self.stage_sizes)
        self.check_start(InceptionResidual)

    def forward(self, images, gates, paths, *, train: bool):
        """Return the logits; see `Network.forward`."""
        small = self.stem == "small"

        def unit(part, *args, unpadded=False, **fields):
            conv, norm = self.layers(train=self.trains(part, train))
            conv = partial(conv, padding=0) if unpadded else conv
            rest = norm, self.activation, self.width, *args
            return conv_unit(conv, *rest, **fields)

        def pool(x):
            return x if small else max_pool(x, 3, 2)

        def residuals(kind, stage, x):
            now = self.trains(f"stage{stage}", train)
            conv, norm = self.layers(train=now)
            fields = {"conv": conv, "norm": norm, "activation": self.activation}
            block = partial(kind, shortcut_kind="A", width=self.width, **fields)
            stage_of = Stage(
                self.begin(block),
                None,
                size=sum(info.stage == stage for info in self.blocks),
                features=x.shape[-1],
                stride=1,
                scan_unroll=self.scan_unroll or default_unroll(self.num_blocks),
                gradient=self.conv_gradient,
                remat=self.remat,
                name=f"stage{stage}",
            )
            x = stage_of(x, *self.of_stage(stage, gates, paths), train=now)
            return self.feature(f"stage{stage}", x)

        # Sides of the maps for images of 299 pixels are in the comments.
        stem: Any = partial(unit, "stem")
        x = stem(32, 3, 1 if small else 2, name="conv1")(images)  # 149
        x = stem(32, 3, unpadded=not small, name="conv2")(x)
        x = stem(64, 3, name="conv3")(x)  # 147
        x = stem(80, 1, name="conv4")(pool(x))  # 73
        x = pool(stem(192, 3, unpadded=not small, name="conv5")(x))  # 71, 35
        x = self.feature("stem", Mixed(stem, MIXED_5B, name="mixed_5b")(x))
        x = residuals(Block35, 1, x)
        reducing = partial(Mixed, reduce=True)
        x = reducing(partial(unit, "stage2"), MIXED_6A, name="mixed_6a")(x)  # 17
        x = residuals(Block17, 2, x)
        x = reducing(partial(unit, "stage3"), MIXED_7A, name="mixed_7a")(x)  # 8
        x = residuals(LastBlock8, 4, residuals(Block8, 3, x))
        x = self.feature("final", unit("final", 1536, 1, name="last_conv")(x))
        x = x.mean(axis=(1, 2))
        if self.num_classes is None:
            return x
        return self.classify(nn.Dropout(self.dropout, deterministic=not train)(x))

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Stem, stages, two of them with the reduction before them, and the end."""
        stem = (*(f"conv{i}" for i in range(1, 6)), "mixed_5b")
        reductions = {
            "stage2": ("mixed_6a", "stage2"),
            "stage3": ("mixed_7a", "stage3"),
        }
        parts = {"stem": stem} | stage_parts(4) | reductions
        return parts | {"final": ("last_conv",)}

    @cached_property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """The residual blocks, in order. All keep the shape."""
        sizes, ones = (*self.stage_sizes, 1), (1,) * 4
        return block_infos(sizes, ones, ones, 1, has_shortcut=True)


class Mixed(nn.Module):
    """A module between the stages: towers and a pooled branch, side by side.

    Attributes:
        unit: as in `towers`.
        module: the towers.
        reduce: whether it halves the map: the pooled branch is 3x3 max-pooling of
            stride 2, instead of 3x3 average pooling and a 1x1 convolution (64).
    """

    unit: ModuleDef
    module: Sequence[Tower]
    reduce: bool = False

    @nn.compact
    def __call__(self, x):
        """Concatenate the branches of f[B, H, W, C] along the channels."""
        branches = towers(x, self.unit, self.module, reduce=self.reduce)
        if self.reduce:
            pooled = max_pool(x, 3, 2)
        else:
            pooled = self.unit(64, 1, name="pooled")(average_pool(x, 3, 1, padding=1))
        return jnp.concatenate([*branches, pooled], axis=-1)
