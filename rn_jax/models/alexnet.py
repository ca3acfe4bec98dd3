# SPDX-License-Identifier: Apache-2.0
"""AlexNet: in two towers (Krizhevsky et al. 2012), and in one (Krizhevsky 2014)."""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn

from rn_jax.errors import InputError
from rn_jax.models.layers import (
    adaptive_average_pool,
    flat,
    max_pool,
    torch_linear,
    windows,
)
from rn_jax.models.network import Count, Network
from rn_jax.models.normalization import local_response_norm

# Channels of the five convolutions, by the number of towers.
_FEATURES = {1: (64, 192, 384, 256, 256), 2: (96, 256, 384, 384, 256)}


class AlexNet(Network):
    """Five convolutions and three fully connected layers (2012, figure 2).

    Attributes:
        towers: 2 for the paper's network: two halves of the channels, connected only in
            the third convolution and the fully connected layers; local response
            normalisation within a tower after the first two convolutions; dropout after
            the fully connected layers. 1 for torchvision's, of "One weird trick": other
            widths, no normalisation, dropout before the fully connected layers.
        stem: "imagenet", an 11x11 convolution of stride 4 and fully connected layers of
            4096 on 6x6 cells; or "small", for images of 32 pixels, a 3x3 convolution of
            stride 1 and fully connected layers of 512 on 3x3 cells.
        dropout: rate of dropout at the two fully connected layers.
        fully_convolutional: whether the fully connected layers are applied to every
            window of 6x6 (3x3) cells of the last map, without averaging cells, and the
            logits are the mean over all windows, as in dense evaluation of VGG.

    Raises:
        InputError: `towers` is not 1 or 2, or `stem` is unknown.
    """

    towers: Count = 1
    stem: Literal["small", "imagenet"] = "imagenet"
    dropout: float = 0.5
    fully_convolutional: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.towers not in _FEATURES:
            raise InputError(f"towers must be 1 or 2, not {self.towers}.")

    def forward(self, images, gates, paths, *, train: bool):
        """Return the logits; see `Network.forward`."""
        two = self.towers == 2
        small = self.stem == "small"
        kernel_init = nn.initializers.normal(0.01) if two else torch_linear
        # Section 5: biases of 1 give ReLUs positive inputs early in training.
        bias_init = nn.initializers.ones if two else nn.initializers.zeros
        conv, _ = self.layers(train=train, use_bias=True, kernel_init=kernel_init)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        widths = iter(_FEATURES[self.towers])

        def layer(x, i, kernel_size, **fields):
            c = conv(next(widths), kernel_size, name=f"conv{i}", **fields)
            return self.feature(f"conv{i}", self.activation(c(x)))

        def pool(x):
            return max_pool(x, 3, 2)

        def normalize(x):
            return local_response_norm(x, groups=2) if two else x

        if small:
            x = layer(images, 1, 3)
        else:
            x = layer(images, 1, 11, stride=4, padding=2)
        x = pool(normalize(x))
        x = layer(x, 2, 5, groups=self.towers, bias_init=bias_init)
        x = pool(normalize(x))
        x = layer(x, 3, 3)
        x = layer(x, 4, 3, groups=self.towers, bias_init=bias_init)
        x = pool(layer(x, 5, 3, groups=self.towers, bias_init=bias_init))
        x = self.feature("final", x)
        if self.num_classes is None:
            return x.mean(axis=(1, 2))
        cells = 3 if small else 6
        if self.fully_convolutional:
            x = windows(x, cells)
        else:
            x = flat(adaptive_average_pool(x, cells))
        fields: Any = {"kernel_init": kernel_init, "bias_init": bias_init}
        for i in (1, 2):
            x = x if two else drop(x)
            width = 512 if small else 4096
            fc = nn.Dense(width, dtype=self.dtype, **fields, name=f"fc{i}")
            x = self.activation(fc(x))
            x = drop(x) if two else x
        logits = self.classify(x, kernel_init=kernel_init)
        return logits.mean(axis=(1, 2)) if logits.ndim == 4 else logits

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """The convolutions."""
        return {f"conv{i}": (f"conv{i}",) for i in range(1, 6)}

    @nn.nowrap
    def for_whole_images(self) -> "AlexNet":
        """Return the network with `fully_convolutional`; see `Network`."""
        return self.copy(fully_convolutional=True)
