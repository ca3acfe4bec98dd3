# SPDX-License-Identifier: Apache-2.0
"""PyramidNet: Deep Pyramidal Residual Networks (Han et al. 2017).

The width grows in every unit instead of at strides. No two units need have the same
shape, so they are laid out one after another, without a scan.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import flax.linen as nn

from rn_jax.errors import must_be
from rn_jax.models.layers import ModuleDef
from rn_jax.models.network import Count
from rn_jax.models.preact import OrderedUnit, weight_layers
from rn_jax.models.skipping import at
from rn_jax.models.starts import ResidualNetwork
from rn_jax.models.trunk import (
    BlockInfo,
    layer_name,
    number_blocks,
    rematerialised,
    stage_parts,
)


class PyramidUnit(OrderedUnit):
    """F is BN-W-BN-ReLU-W-BN, and nothing follows the sum (figures 1d and 1e).

    It is a pre-activation unit without its first ReLU and with a last BatchNorm. A
    bottleneck has its stride on the 3x3 convolution, as in the authors' code.
    """

    stride_on: str = "3x3"

    branch_ends = "norm"
    leading_norms = 1

    def residual(self, x, *, train: bool):
        """Return F(x): f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        first, *others = weight_layers(self)
        y = first(self.norm(name="bn1")(x))
        for i, weight in enumerate(others, 2):
            y = weight(self.activation(self.norm(name=f"bn{i}")(y)))
        return self.norm(name=f"bn{len(others) + 2}")(y)


class PyramidStage(nn.Module):
    """Units of growing width, one after another.

    Attributes:
        unit: called as `unit(features=..., stride=..., name=...)`.
        features: channels of each unit's output.
        stride: stride of the first unit.
        remat: see `Stage`.
    """

    unit: ModuleDef
    features: Sequence[int]
    stride: int
    remat: str

    @nn.compact
    def __call__(self, x, gates=None, paths=None, *, train: bool):
        """Return f[B, H / stride, W / stride, features[-1]] from f[B, H, W, C].

        The arguments are those of `Stage`.
        """

        def call(unit, x, gate, on_path):
            return unit(x, gate, on_path, train=train)

        call = rematerialised(call, self.remat)
        for i, features in enumerate(self.features):
            name = layer_name(i + 1, len(self.features))
            stride = self.stride if i == 0 else 1
            unit = self.unit(features=features, stride=stride, name=name)
            x = call(unit, x, *at((gates, paths), i))
        return x


class PyramidNet(ResidualNetwork):
    """Residual units whose width grows from first to last (figure 2).

    The k-th of N units has floor(d_k) channels, times 4 with bottlenecks, where d_0 is
    that of the stem and

        d_k = d_0 + k alpha / N     additive (equation 2)
        d_k = d_0 alpha^(k / N)     multiplicative (equation 3).

    The equations floor each width before the next is derived from it, with which
    an alpha below N would never widen a unit. Here d_k itself is not rounded, as in the
    authors' code. That code rounds to the nearest width; we floor, which gives the
    numbers of parameters that the paper has for bottlenecks of 200 layers and more.

    Shortcuts append zero channels, and average 2x2 pixels at strides, as in the
    authors' code.

    Attributes:
        stage_sizes: number of units per stage; strides of 2 are between stages.
        alpha: widening factor, at least 1.
        widening: "additive" or "multiplicative".
        bottleneck: as in `OrderedUnit`.
        stem_features: channels of the 3x3 convolution that comes first.
        remat: "none", "cheap" or "all"; see `Stage`.

    Raises:
        InputError: `alpha` is not a number of at least 1.
    """

    stage_sizes: Sequence[Count]
    alpha: float = 48.0
    widening: Literal["additive", "multiplicative"] = "additive"
    bottleneck: bool = False
    stem_features: Count = 16
    remat: Literal["none", "cheap", "all"] = "cheap"

    has_shortcuts = True
    norm_first = True

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.alpha, int | float) or not 1 <= self.alpha < math.inf:
            raise must_be("alpha", "a number of at least 1", self.alpha)
        self.check_start(PyramidUnit)

    @cached_property
    def features(self) -> tuple[int, ...]:
        """Channels of each unit's output."""
        count, first = sum(self.stage_sizes), self.stem_features
        depths = range(1, count + 1)
        if self.widening == "additive":
            widths = [first + k * self.alpha / count for k in depths]
        else:
            widths = [first * self.alpha ** (k / count) for k in depths]
        # The sum allows for a power just below a whole number.
        return tuple(self._expansion * math.floor(d + 1e-9) for d in widths)

    @property
    def _expansion(self):
        return 4 if self.bottleneck else 1

    def forward(self, images, gates, paths, *, train: bool):
        """Return the logits; see `Network.forward`."""
        conv, norm = self.layers(train=self.trains("stem", train))
        norm = self.outside(norm)
        x = norm(name="stem_bn")(conv(self.stem_features, 3, name="stem_conv")(images))
        x = self.feature("stem", x)
        for stage in range(1, len(self.stage_sizes) + 1):
            features = [
                width
                for width, block in zip(self.features, self.blocks, strict=True)
                if block.stage == stage
            ]
            name = f"stage{stage}"
            now = self.trains(name, train)
            conv, norm = self.layers(train=now)
            fields: Any = {"shortcut_kind": "A_pooled", "bottleneck": self.bottleneck}
            fields |= {"conv": conv, "norm": norm, "activation": self.activation}
            unit = self.begin(partial(PyramidUnit, **fields))
            stride = 1 if stage == 1 else 2
            part = PyramidStage(unit, features, stride, self.remat, name=name)
            # (B, H / 2^(stage - 1), W / 2^(stage - 1), features[-1])
            x = part(x, *self.of_stage(stage, gates, paths), train=now)
            x = self.feature(name, x)
        _, norm = self.layers(train=self.trains("final", train))
        x = self.outside(norm)(name="final_bn")(x)
        x = self.feature("final", self.activation(x))
        return self.classify(x.mean(axis=(1, 2)))  # (B, num_classes)

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Stem, stages and the last BatchNorm."""
        stages = stage_parts(len(self.stage_sizes))
        return {"stem": ("stem_conv", "stem_bn"), **stages, "final": ("final_bn",)}

    @cached_property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """The units, in order. All have a shortcut, so all can be skipped."""
        widths = (self.stem_features, *self.features)

        def facts(stage, place):
            before = sum(self.stage_sizes[: stage - 1]) + place - 1
            in_stage = stage == 1 or place > 1  # and so without a stride
            same_shape = in_stage and widths[before] == widths[before + 1]
            return {"same_shape": same_shape, "apart": True, "skippable": True}

        return number_blocks(self.stage_sizes, layer_name, facts)
