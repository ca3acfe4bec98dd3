# SPDX-License-Identifier: Apache-2.0
"""GoogLeNet: Going Deeper with Convolutions (Szegedy et al. 2015)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from rn_jax.models.layers import (
    ModuleDef,
    adaptive_average_pool,
    average_pool,
    flat,
    max_pool,
)
from rn_jax.models.network import Count, Network
from rn_jax.models.normalization import local_response_norm

_xavier = nn.initializers.glorot_uniform()  # as in Caffe's replication

# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj by module.
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class ConvUnit(nn.Module):
    """Convolution, optional BatchNorm and ReLU.

    Attributes:
        features: channels of the output.
        kernel_size, stride: of the convolution, see `Conv`.
        conv, norm, activation: as in `Block`; without `norm`, no normalisation.
    """

    features: int
    kernel_size: int | tuple[int, int]
    stride: int
    conv: ModuleDef
    norm: ModuleDef | None
    activation: Callable

    @nn.compact
    def __call__(self, x):
        """Return f[B, H / stride, W / stride, features] from f[B, H, W, C]."""
        x = self.conv(self.features, self.kernel_size, self.stride, name="conv")(x)
        x = x if self.norm is None else self.norm(name="bn")(x)
        return self.activation(x)


class Inception(nn.Module):
    """Four parallel branches (figure 2b): 1x1, 3x3, 5x5 and pooling.

    Attributes:
        features: channels of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool projection.
        conv, norm, activation: as in `ConvUnit`.
        large_kernel: 5, as in the paper, or 3, as in torchvision.
    """

    features: Sequence[int]
    conv: ModuleDef
    norm: ModuleDef | None
    activation: Callable = nn.relu
    large_kernel: int = 5

    @nn.compact
    def __call__(self, x):
        """Concatenate the branches of f[B, H, W, C] along the channels."""

        def unit(features, kernel_size, name):
            parts = self.conv, self.norm, self.activation
            return ConvUnit(features, kernel_size, 1, *parts, name=name)

        one, reduce_3, three, reduce_5, five, projection = self.features
        pooled = max_pool(x, 3, 1, padding=1)
        branches = [
            unit(one, 1, "branch1")(x),
            unit(three, 3, "branch2")(unit(reduce_3, 1, "branch2_reduce")(x)),
            unit(five, self.large_kernel, "branch3")(
                unit(reduce_5, 1, "branch3_reduce")(x)
            ),
            unit(projection, 1, "branch4")(pooled),
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """A classifier on intermediate features, for the training loss only (section 5).

    Average pooling, 1x1 convolution to 128 channels, 1024 units, dropout, logits.

    Attributes:
        num_classes: size of the logits.
        unit: called as `unit(features, kernel_size, name=...)`.
        activation: activation after the first fully connected layer.
        grid: None for average pooling of 5x5 windows with stride 3, as in the paper; 4
            for the means of 4x4 cells, as in torchvision and for maps below 5x5.
        dropout: rate of dropout.
        dtype: dtype of the computation.
    """

    num_classes: int
    unit: ModuleDef
    activation: Callable
    grid: int | None
    dropout: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        """Return and sow the logits f[B, num_classes] of features f[B, H, W, C]."""
        if self.grid is None and min(x.shape[1:3]) >= 5:
            x = average_pool(x, 5, 3)
        else:
            x = adaptive_average_pool(x, self.grid or 4)
        x = self.unit(128, 1, name="conv")(x)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_xavier)
        x = self.activation(dense(1024, name="fc")(flat(x)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = dense(self.num_classes, name="head")(x)
        if not self.is_initializing():
            self.sow("aux_logits", "logits", logits)
        return logits


class GoogLeNet(Network):
    """Nine Inception modules with two auxiliary heads, after 4a and 4d (figure 3).

    The heads run in training only. Their logits are sown in the collection
    "aux_logits", and the training step adds their losses with a weight of 0.3.

    Attributes:
        batch_norm: whether to use BatchNorm after every convolution, instead of biases
            and the stem's local response normalisation.
        large_kernel: side of the 5x5 convolutions: 5, or 3 in torchvision.
        last_pool: window of the pooling before 5a: 3, or 2 in torchvision.
        aux_heads: whether there are auxiliary heads.
        aux_grid: `grid` of `AuxiliaryHead`.
        dropout: rate of dropout before the classifier; 0.2 in torchvision.
        aux_dropout: rate of dropout in the auxiliary heads.
        stem: "imagenet"; or "small", for images of 32 pixels, whose first convolution
            is 3x3 with stride 1 and without pooling.

    Raises:
        InputError: `stem` is unknown.
    """

    batch_norm: bool = False
    large_kernel: Count = 5
    last_pool: Count = 3
    aux_heads: bool = True
    aux_grid: Count | None = None
    dropout: float = 0.4
    aux_dropout: float = 0.7
    stem: Literal["small", "imagenet"] = "imagenet"

    def forward(self, images, gates, paths, *, train: bool):
        """Return the logits; see `Network.forward`."""
        small = self.stem == "small"

        def layers(part):
            conv, norm = self.layers(
                train=self.trains(part, train),
                use_bias=not self.batch_norm,
                kernel_init=_xavier,
            )
            return conv, norm if self.batch_norm else None, self.activation

        def unit(features, kernel_size, stride=1, *, name):
            return ConvUnit(features, kernel_size, stride, *layers(name), name=name)

        def normalize(x):  # with Caffe's constants; the paper states none
            return x if self.batch_norm else local_response_norm(x, k=1, alpha=2e-5)

        def auxiliary(x, name):
            if self.num_classes is None or not self.aux_heads:
                return
            if train or self.is_initializing():
                parts = unit, self.activation, self.aux_grid, self.aux_dropout
                head = AuxiliaryHead(self.num_classes, *parts, self.dtype, name=name)
                head(x, train=train)

        if small:
            x = self.feature("conv1", unit(64, 3, name="conv1")(images))
        else:
            x = self.feature("conv1", unit(64, 7, 2, name="conv1")(images))
            x = max_pool(x, 3, 2, ceil_mode=True)
        x = self.feature("conv2", unit(64, 1, name="conv2")(normalize(x)))
        x = self.feature("conv3", unit(192, 3, name="conv3")(x))
        x = max_pool(normalize(x), 3, 2, ceil_mode=True)
        for name, features in INCEPTION.items():
            part = f"inception{name}"
            fields = features, *layers(part), self.large_kernel
            x = self.feature(part, Inception(*fields, name=part)(x))
            if name == "3b":
                x = max_pool(x, 3, 2, ceil_mode=True)
            elif name == "4a":
                auxiliary(x, "aux1")
            elif name == "4d":
                auxiliary(x, "aux2")
            elif name == "4e":
                x = max_pool(x, self.last_pool, 2, ceil_mode=True)
        x = self.feature("final", x).mean(axis=(1, 2))
        if self.num_classes is None:
            return x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.classify(x, kernel_init=_xavier)

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """The convolutions and Inception modules; auxiliary heads always train."""
        names = ["conv1", "conv2", "conv3", *(f"inception{name}" for name in INCEPTION)]
        return {name: (name,) for name in names}
