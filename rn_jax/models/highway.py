# SPDX-License-Identifier: Apache-2.0
"""Highway networks (Srivastava, Greff and Schmidhuber 2015: 1505.00387, 1507.06228).

A layer learns how much of its input to carry unchanged:

    y = H(x) * T(x) + x * C(x),   T(x) = sigmoid(W_T x + b_T)   (equation 2).

The papers couple the gates, C = 1 - T (equation 3); with b_T below 0, a network of any
depth then initially carries its input. C does what the forget gate does in an LSTM, by
which the papers were inspired: the cell c_t = i_t * g_t + f_t * c_(t-1) is the same
sum, with the input gate i for T and the forget gate f for C. The first LSTM had no
forget gate: f = 1. A residual layer has neither gate: with T = C = 1, y = x + H(x), so
layers with a carry gate of their own can compute what residual layers compute.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import ClassVar

import flax.linen as nn
from flax.linen.dtypes import promote_dtype

from rn_jax.errors import InputError, must_be
from rn_jax.models.gating import exclusive_sum, gated_sum
from rn_jax.models.layers import ModuleDef, flat, max_pool, torch_linear
from rn_jax.models.network import Count, Network
from rn_jax.models.normalization import at_least_float32
from rn_jax.models.trunk import (
    BlockInfo,
    Stage,
    block_name,
    default_unroll,
    number_blocks,
)

GATES = ("coupled", "independent", "open")


class HighwayLayer(nn.Module):
    """H(x) * T(x) + x * C(x), with convolutions or fully connected layers.

    A gate b multiplies T(x) and 1 - C(x); with b = 0 the layer is the identity. The sum
    of T(x), without b, over an example's units and pixels, f[B], is sown in
    "intermediates" as "transform_gate_sum", the quantity in the papers' figures.

    Attributes:
        features: channels or units of input and output.
        linear: called as `linear(features, name=..., ...)`: the layer of W_H, W_T, W_C.
        activation: activation of H.
        gate_bias: initial b_T.
        gating: "coupled", C = 1 - T; "independent", C(x) = sigmoid(W_C x + b_C), with
            the initial b_C = -b_T, with which C is initially near 1 - T (our choice:
            the papers train no such layer); or "open", T = C = 1, a residual layer.

    Raises:
        InputError: `gating` is unknown.
    """

    features: int
    linear: ModuleDef
    activation: Callable = nn.relu
    gate_bias: float = -2.0
    gating: str = "coupled"

    closed_is_identity: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """Return the layer's output: f[B, ..., features] -> f[B, ..., features]."""
        del train  # no difference
        if self.gating not in GATES:
            raise must_be("gating", f"one of {', '.join(GATES)}", self.gating)

        def transform(layer, x):
            return layer.activation(layer.linear(layer.features, name="transform")(x))

        def sigmoid(layer, x, bias, name):
            start = nn.initializers.constant(bias)
            return nn.sigmoid(
                layer.linear(layer.features, bias_init=start, name=name)(x)
            )

        def gates_and_transform(layer, x):
            t = removed = sigmoid(layer, x, layer.gate_bias, "gate")
            wide = t.astype(at_least_float32(t.dtype))
            total = flat(wide).sum(axis=1)
            layer.sow("intermediates", "transform_gate_sum", total)
            if layer.gating == "independent":
                removed = 1 - sigmoid(layer, x, -layer.gate_bias, "carry_gate")
            return t, removed, transform(layer, x)

        if self.gating == "open":
            return gated_sum(self, x, x, transform, gate, on_path)
        return exclusive_sum(self, x, x, gates_and_transform, gate, on_path)


class _Highway(Network, kw_only=True):
    """The common part of the convolutional and the fully connected network.

    Attributes:
        gate_bias: initial b_T.
        gating: "coupled", "independent" or "open"; see `HighwayLayer`.
        scan_unroll: number of blocks per iteration of a scan; see `Stage`. None: what
            suits the backend; see `default_unroll`.
        remat: "none", "cheap" or "all"; see `Stage`.
    """

    gate_bias: float = -2.0
    gating: str = "coupled"
    scan_unroll: Count | None = None
    remat: str = "cheap"

    has_shortcuts = True

    def _stage(self, stage, linear, features, x, gates, paths, train):
        """Return the output of one stage's highway layers."""

        def layer(features, stride, name):
            del stride  # highway layers keep the shape
            fields = self.activation, self.gate_bias, self.gating
            return HighwayLayer(features, linear, *fields, name=name)

        x = Stage(
            layer,
            None,
            size=sum(block.stage == stage for block in self.blocks),
            features=features,
            stride=1,
            scan_unroll=self.scan_unroll or default_unroll(self.num_blocks),
            gradient=self.conv_gradient,
            remat=self.remat,
            name=f"stage{stage}",
        )(
            x,
            *self.of_stage(stage, gates, paths),
            train=self.trains(f"stage{stage}", train),
        )
        return self.feature(f"stage{stage}", x)

    def _infos(self, stage_sizes):
        facts = {"same_shape": True, "apart": False, "skippable": True}
        return number_blocks(stage_sizes, block_name, lambda stage, place: facts)


class HighwayNet(_Highway):
    """The convolutional highway network for CIFAR (1507.06228, section 4.2).

    Each stage is a plain 3x3 convolution with ReLU and highway layers of the same
    width, with 2x2 max-pooling between stages; then come a 1x1 convolution and global
    average pooling. Dropout follows the input, each pooling and the global average.

    Attributes:
        stage_sizes: number of highway layers per stage.
        features: channels of each stage.
        last_features: channels of the last 1x1 convolution.
        dropout: rate of dropout.

    Raises:
        InputError: `features` and `stage_sizes` have different lengths.
    """

    stage_sizes: Sequence[Count] = (4, 5, 5)
    features: Sequence[Count] = (32, 80, 128)
    last_features: Count = 100
    dropout: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        if len(self.features) != len(self.stage_sizes):
            raise InputError("features and stage_sizes must have the same length.")

    def forward(self, images, gates, paths, *, train: bool):
        """Return the logits; see `Network.forward`."""
        conv, _ = self.layers(train=train, use_bias=True)
        drop = nn.Dropout(self.dropout)

        (x,) = promote_dtype(images, dtype=self.dtype)
        for stage, features in enumerate(self.features, start=1):
            if stage > 1:
                x = max_pool(x, 2, 2)
            x = drop(x, deterministic=not self.trains(f"stage{stage}", train))
            x = self.activation(conv(features, 3, name=f"conv{stage}")(x))
            x = self._stage(stage, conv, features, x, gates, paths, train)
        x = self.activation(conv(self.last_features, 1, name="last_conv")(x))
        x = self.feature("final", x)
        return self.classify(drop(x.mean(axis=(1, 2)), deterministic=not train))

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Stages, each with the plain convolution before it, and the last one."""
        stages = range(1, len(self.stage_sizes) + 1)
        parts = {f"stage{n}": (f"conv{n}", f"stage{n}") for n in stages}
        return parts | {"final": ("last_conv",)}

    @cached_property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """The highway layers, in order."""
        return self._infos(self.stage_sizes)


class HighwayMLP(_Highway):
    """The fully connected highway network for MNIST (1505.00387, section 3).

    A plain layer, depth - 1 highway layers and the classifier.

    Attributes:
        depth: number of hidden layers, the first of which is plain; at least 2.
        width: units of each hidden layer.

    Raises:
        InputError: `depth` is below 2, or images have another number of pixels than in
            `init`.
    """

    depth: Count = 50
    width: Count = 50

    def __post_init__(self):
        super().__post_init__()
        if self.depth < 2:
            raise InputError(f"depth must be at least 2, not {self.depth}.")

    def forward(self, images, gates, paths, *, train: bool):
        """Return the logits; see `Network.forward`."""
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=torch_linear)
        x = flat(images)
        if self.has_variable("params", "fc"):
            expected: int = self.get_variable("params", "fc")["kernel"].shape[0]
            if x.shape[1] != expected:
                raise InputError(
                    f"The network takes images of {expected} numbers, not of shape "
                    f"{images.shape[1:]}."
                )
        x = self.activation(dense(self.width, name="fc")(x))
        x = self._stage(1, dense, self.width, x, gates, paths, train)
        return self.classify(self.feature("final", x))

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """All layers but the classifier."""
        return {"stage1": ("fc", "stage1")}

    @nn.nowrap
    def for_whole_images(self) -> "Network":
        """Raise an InputError: the network takes images of one size only."""
        raise InputError("A fully connected network takes images of one size only.")

    @cached_property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """The highway layers, in order."""
        return self._infos((self.depth - 1,))
