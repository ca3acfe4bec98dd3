# SPDX-License-Identifier: Apache-2.0
"""VGG: Very Deep Convolutional Networks (Simonyan and Zisserman 2015, table 1)."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal

import flax.linen as nn

from rn_jax.errors import InputError
from rn_jax.models.gating import gated_layer
from rn_jax.models.layers import (
    ModuleDef,
    adaptive_average_pool,
    flat,
    max_pool,
    windows,
)
from rn_jax.models.network import Count, Network
from rn_jax.models.trunk import BlockInfo, layer_name, number_blocks, stage_parts

_normal = nn.initializers.normal(0.01)


class VGGLayer(nn.Module):
    """3x3 convolution, optional BatchNorm, ReLU and dropout.

    Its gate interpolates between the layer (1) and the identity (0). A layer that
    changes the number of channels ignores its gate.

    Attributes:
        features: channels of the output.
        conv, norm, activation: as in `Block`; without `norm`, no normalisation.
        dropout: rate of dropout.
    """

    features: int
    conv: ModuleDef
    norm: ModuleDef | None
    activation: Callable
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, gate=None, *, train: bool):
        """Return the layer's output: f[B, H, W, C] -> f[B, H, W, features]."""

        def output(layer, x):
            y = layer.conv(layer.features, 3, name="conv")(x)
            y = y if layer.norm is None else layer.norm(name="bn")(y)
            drop = nn.Dropout(layer.dropout, deterministic=not train)
            return drop(layer.activation(y))

        if x.shape[-1] == self.features:
            return gated_layer(self, x, output, gate)
        return output(self, x)


class VGGStage(nn.Module):
    """Layers of one width and 2x2 max-pooling.

    Attributes:
        layer: called as `layer(dropout=..., name=...)`.
        size: number of layers.
        dropout: rate of dropout after each layer but the last.
    """

    layer: ModuleDef
    size: int
    dropout: float

    @nn.compact
    def __call__(self, x, gates=None, *, train: bool):
        """Return f[B, H / 2, W / 2, features] from f[B, H, W, C]; gates f32[size]."""
        for i in range(self.size):
            rate = self.dropout if i + 1 < self.size else 0.0
            layer = self.layer(dropout=rate, name=layer_name(i + 1, self.size))
            x = layer(x, None if gates is None else gates[i], train=train)
        return max_pool(x, 2, 2)


class VGG(Network):
    """Stages of 3x3 convolutions and fully connected layers.

    Attributes:
        stage_sizes: convolutions per stage; (2, 2, 3, 3, 3) is column D, VGG-16.
        features: channels of each stage.
        batch_norm: whether BatchNorm follows every convolution, which keeps its bias,
            as in torchvision.
        stem: the layers after the convolutions: "imagenet", 7x7 average pooling and two
            fully connected layers of 4096, each followed by dropout; or "small", for
            images of 32 pixels, global average pooling, dropout, a fully connected
            layer of 512, BatchNorm if `batch_norm`, and dropout.
        hidden: widths of the fully connected layers, to override those of `stem`.
        dropout: rate of dropout around the fully connected layers.
        conv_dropout: by stage, rate of dropout after each convolution but the last;
            empty: none.
        fully_convolutional: with the stem "imagenet", whether the fully connected
            layers are applied to every 7x7 window of the last map, without pooling, and
            the logits are the mean over all windows (section 3.2, which does not say
            whether scores are averaged before or after the softmax).

    Raises:
        InputError: `stem` is unknown, or the number of stages differs between fields.
    """

    stage_sizes: Sequence[Count]
    features: Sequence[Count] = (64, 128, 256, 512, 512)
    batch_norm: bool = False
    stem: Literal["small", "imagenet"] = "imagenet"
    hidden: Sequence[Count] | None = None
    dropout: float = 0.5
    conv_dropout: Sequence[float] = ()
    fully_convolutional: bool = False

    def __post_init__(self):
        super().__post_init__()
        stages = len(self.stage_sizes)
        if len(self.features) != stages or len(self.conv_dropout) not in (0, stages):
            raise InputError(
                f"features and conv_dropout must have one entry for each of {stages} "
                "stages."
            )

    def forward(self, images, gates, paths, *, train: bool):
        """Return the logits; see `Network.forward`."""
        conv, norm = self.layers(train=train, use_bias=True)
        drop = nn.Dropout(self.dropout, deterministic=not train)

        x = images
        for stage, size in enumerate(self.stage_sizes, start=1):
            name = f"stage{stage}"
            now = self.trains(name, train)
            own = self.layers(train=now, use_bias=True)[1] if self.batch_norm else None

            def layer(dropout, name, features=self.features[stage - 1], own=own):
                return VGGLayer(
                    features, conv, own, self.activation, dropout, name=name
                )

            rate = self.conv_dropout[stage - 1] if self.conv_dropout else 0.0
            convolutions = VGGStage(layer, size, rate, name=name)
            x = convolutions(x, *self.of_stage(stage, gates), train=now)
            x = self.feature(name, x)
        x = self.feature("final", x)
        if self.num_classes is None:
            return x.mean(axis=(1, 2))
        small = self.stem == "small"
        if small:
            x = drop(x.mean(axis=(1, 2), keepdims=True))
        elif self.fully_convolutional:
            x = windows(x, 7)
        else:
            x = flat(adaptive_average_pool(x, 7))[:, None, None]
        widths = self.hidden or ((512,) if small else (4096, 4096))
        for i, width in enumerate(widths, start=1):
            fc = nn.Dense(width, dtype=self.dtype, kernel_init=_normal, name=f"fc{i}")
            x = fc(x)
            if small and self.batch_norm:
                x = norm(name=f"fc{i}_bn")(x)
            x = drop(self.activation(x))
        if self.fully_convolutional:
            return self.classify(x, kernel_init=_normal).mean(axis=(1, 2))
        return self.classify(x[:, 0, 0], kernel_init=_normal)

    @nn.nowrap
    def for_whole_images(self) -> "VGG":
        """Return the network with `fully_convolutional`; see `Network`."""
        return self.copy(fully_convolutional=True)

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """The stages."""
        return stage_parts(len(self.stage_sizes))

    @cached_property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """The convolutional layers, in order."""

        def facts(stage, place):
            before = (3, *self.features)[stage - 1]
            same = place > 1 or before == self.features[stage - 1]
            return {"same_shape": same, "apart": True, "skippable": same}

        return number_blocks(self.stage_sizes, layer_name, facts)
