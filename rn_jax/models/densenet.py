# SPDX-License-Identifier: Apache-2.0
"""DenseNet: Densely Connected Convolutional Networks (Huang et al. 2017).

Every layer of a dense block takes the feature maps of all layers before it:
x_l = H_l([x_0, x_1, ..., x_{l-1}]) (equation 2). Maps are passed as a list and
concatenated inside a layer. With rematerialised layers each map is therefore kept once,
and activation memory grows linearly with depth.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from rn_jax.errors import InputError
from rn_jax.models.gating import gated_features, put_variables, scale_gradient
from rn_jax.models.layers import ModuleDef, average_pool, max_pool
from rn_jax.models.network import Count, Network
from rn_jax.models.trunk import BlockInfo, layer_name, number_blocks


class DenseLayer(nn.Module):
    """H_l: BN-ReLU-3x3(k), or BN-ReLU-1x1(4k)-BN-ReLU-3x3(k) with `bottleneck`.

    Attributes:
        growth_rate: k, the number of feature maps that the layer adds.
        bottleneck: whether to use the 1x1 convolution of DenseNet-B.
        dropout: rate of dropout after every convolution.
        conv, norm, activation: as in `Block`.
    """

    growth_rate: int
    bottleneck: bool
    dropout: float
    conv: ModuleDef
    norm: ModuleDef
    activation: Callable

    @nn.compact
    def __call__(self, maps, gate=None, *, train: bool):
        """Return x_l, f[B, H, W, growth_rate]; zeros, not computed, if the gate is 0.

        Args:
            maps: [x_0, ..., x_{l-1}], f[B, H, W, C_i] each.
            gate: factor of x_l: f32[], f32[1], f32[B], `Subset` or None.
            train: whether dropout is on.
        """

        def new_features(layer, maps):
            drop = nn.Dropout(layer.dropout, deterministic=not train)
            y = jnp.concatenate(maps, axis=-1)
            y = layer.activation(layer.norm(name="bn1")(y))
            if layer.bottleneck:
                y = drop(layer.conv(4 * layer.growth_rate, 1, name="conv1")(y))
                y = layer.activation(layer.norm(name="bn2")(y))
                return drop(layer.conv(layer.growth_rate, 3, name="conv2")(y))
            return drop(layer.conv(layer.growth_rate, 3, name="conv1")(y))

        return gated_features(self, maps, self.growth_rate, new_features, gate)


class DenseBlock(nn.Module):
    """`size` dense layers one after another (figure 1).

    Attributes:
        layer: called as `layer(name=...)`.
        size: number of layers.
        remat: see `DenseNet`.
    """

    layer: ModuleDef
    size: int
    remat: str = "none"

    @nn.compact
    def __call__(self, x, gates=None, paths=None, *, train: bool):
        """Concatenate x and all new maps, f[B, H, W, C + size * growth_rate].

        The arguments are those of `Stage`.
        """
        plain = (
            self.remat == "none"
            or self.is_initializing()
            or self.is_mutable_collection("intermediates")  # returns captured values
        )
        call = _call if plain else _call_again
        maps = [x]
        for i in range(self.size):
            layer = self.layer(name=layer_name(i + 1, self.size))
            # [x_0, x_1, ..., x_l]
            maps = call(layer, maps, None if gates is None else gates[i], train)
            if paths is not None:  # the branch is x_l, the shortcut all other maps
                *others, new = maps
                others = [scale_gradient(m, 1 - paths[i]) for m in others]
                maps = [*others, scale_gradient(new, paths[i])]
        return jnp.concatenate(maps, axis=-1)


def _call(layer, maps, gate, train):
    return [*maps, layer(maps, gate, train=train)]


def _call_again(layer, maps, gate, train):
    """Do the same, but recompute it from `maps` in the backward pass.

    XLA drops the barriers of `nn.remat` on a CPU and would merge the second computation
    with the first; `_separately` prevents that.
    """
    alone, mutable = layer.clone(parent=None), layer.scope.mutable or []
    rngs = {name: layer.make_rng(name) for name in layer.scope.rngs}

    def pure(floats, others):
        maps, variables, gate, rngs = _joined(floats, others)
        new, updates = alone.apply(
            variables, maps, gate, train=train, rngs=rngs, mutable=mutable
        )
        return [*maps, new], updates

    def backward(arguments, g):
        floats, others = arguments
        g, none = _parted(g)

        def gradients(floats, g):
            _, vjp = jax.vjp(lambda floats: pure(floats, others), floats)
            return vjp(_joined(g, none))

        return *_separately(gradients, floats, g), None

    again = jax.custom_vjp(pure)
    again.defvjp(lambda *arguments: (pure(*arguments), arguments), backward)
    maps, updates = again(*_parted((maps, layer.variables, gate, rngs)))
    put_variables(layer, updates)
    return maps


def _parted(tree):
    """Return the leaves with a gradient and the others, each with None for the rest."""
    floats = jax.tree.map(lambda x: x if _is_float(x) else None, tree)
    return floats, jax.tree.map(lambda x: None if _is_float(x) else x, tree)


def _joined(floats, others):
    """Undo `_parted`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, floats, others, is_leaf=lambda x: x is None
    )


def _is_float(x):
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _separately(gradients, floats, g):
    """Return gradients(floats, g), scheduled after g is available and before its use.

    On a CPU it is one side of a conditional that always takes this side: XLA does not
    know that n (n + 1) is even for any bits n of g. (A condition on values of g could
    differ between devices, which would then deadlock in BatchNorm.)
    """

    def on_cpu(floats, g):
        first = jax.tree.leaves(g)[0]
        first = first[(0,) * first.ndim].astype(jnp.float32)
        n = lax.bitcast_convert_type(first, jnp.int32)
        zeros = partial(jax.tree.map, jnp.zeros_like)
        is_even = n * (n + 1) % 2 == 0
        return lax.cond(is_even, gradients, lambda x, g: (zeros(x),), floats, g)

    def elsewhere(floats, g):
        return gradients(*lax.optimization_barrier((floats, g)))

    return lax.platform_dependent(floats, g, cpu=on_cpu, default=elsewhere)


class Transition(nn.Module):
    """BN, ReLU, 1x1 convolution and 2x2 average pooling between two dense blocks.

    Attributes:
        features: channels of the output.
        dropout: rate of dropout after the convolution.
        conv, norm, activation: as in `Block`.
    """

    features: int
    dropout: float
    conv: ModuleDef
    norm: ModuleDef
    activation: Callable

    @nn.compact
    def __call__(self, x, *, train: bool):
        """Return f[B, floor(H / 2), floor(W / 2), features] from f[B, H, W, C].

        As in Torch, pooling drops a last odd row or column. A side of 1 stays 1.
        """
        x = self.activation(self.norm(name="bn")(x))
        x = self.conv(self.features, 1, name="conv")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return average_pool(x, 2, 2)


class DenseNet(Network):
    """Dense blocks with transitions between them (figure 2, tables 1 and 2).

    A gate multiplies the new features of a layer: with 0 they are zero and not
    computed, and the features of earlier layers are unchanged.

    Attributes:
        stage_sizes: number of layers per dense block.
        growth_rate: k, the number of feature maps that a layer adds.
        bottleneck: whether layers start with a 1x1 convolution to 4k channels (B).
        compression: theta, the share of channels that a transition keeps (C).
        stem: "small", a 3x3 convolution, for images of 32 pixels; or "imagenet", a 7x7
            convolution of stride 2, BN, ReLU and 3x3 max-pooling of stride 2.
        stem_features: channels of the stem.
        dropout: rate of dropout after every convolution but the first; 0.2 in the paper
            when it trains without augmentation.
        remat: layers computed again in the backward pass instead of kept: "none",
            memory quadratic in depth; or "all", linear memory, reverse mode only.

    Raises:
        InputError: `stem` or `remat` is unknown.
    """

    stage_sizes: Sequence[Count]
    growth_rate: Count = 12
    bottleneck: bool = False
    compression: float = 1.0
    stem: Literal["small", "imagenet"] = "small"
    stem_features: Count = 16
    dropout: float = 0.0
    remat: Literal["none", "all"] = "none"

    has_shortcuts = True
    norm_first = True

    def forward(self, images, gates, paths, *, train: bool):
        """Return the logits; see `Network.forward`."""
        conv, norm = self.layers(train=self.trains("stem", train))
        if self.stem == "small":  # no BN and ReLU: the first layer starts with them
            x = conv(self.stem_features, 3, name="stem_conv")(images)
        else:
            x = conv(self.stem_features, 7, 2, name="stem_conv")(images)
            x = self.activation(norm(name="stem_bn")(x))
        x = self.feature("stem", x)
        if self.stem != "small":
            x = max_pool(x, 3, 2, padding=1)

        for stage, size in enumerate(self.stage_sizes, start=1):
            name = f"stage{stage}"
            now = self.trains(name, train)
            conv, norm = self.layers(train=now)
            layers: Any = {"conv": conv, "norm": norm, "activation": self.activation}
            if stage > 1:
                kept = math.floor(self.compression * x.shape[-1])
                transition = f"transition{stage - 1}"
                reduce = Transition(kept, self.dropout, **layers, name=transition)
                x = reduce(x, train=now)
            fields = self.growth_rate, self.bottleneck, self.dropout
            layer = partial(DenseLayer, *fields, **layers)
            block = DenseBlock(layer, size, self.remat, name=name)
            x = block(x, *self.of_stage(stage, gates, paths), train=now)
            x = self.feature(name, x)
        _, norm = self.layers(train=self.trains("final", train))
        x = self.feature("final", self.activation(norm(name="final_bn")(x)))
        return self.classify(x.mean(axis=(1, 2)))

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Stem, stages, each with the transition before it, and the last BatchNorm."""
        parts = {"stem": ("stem_conv", "stem_bn"), "stage1": ("stage1",)}
        for stage in range(2, len(self.stage_sizes) + 1):
            parts[f"stage{stage}"] = f"transition{stage - 1}", f"stage{stage}"
        return parts | {"final": ("final_bn",)}

    @cached_property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """The dense layers, in order. All add channels, and all can be skipped."""
        facts = {"same_shape": False, "apart": True, "skippable": True}
        return number_blocks(self.stage_sizes, layer_name, lambda stage, place: facts)


def build_densenet(
    *,
    depth: int,
    growth_rate: int,
    bottleneck: bool = False,
    compression: float = 1.0,
    **fields: Any,
) -> DenseNet:
    """Return the DenseNet of L layers for CIFAR and SVHN (section 3).

    It has three dense blocks of (L - 4) / 3 layers, or (L - 4) / 6 with bottlenecks.
    The first convolution has 16 channels, or 2k in DenseNet-BC.

    Args:
        depth: L, the number of layers.
        growth_rate: k.
        bottleneck: whether it is a DenseNet-B.
        compression: theta; below 1 in DenseNet-C.
        **fields: fields of `DenseNet`.

    Raises:
        InputError: no such network has that depth.
    """
    layers = 6 if bottleneck else 3
    if depth <= 4 or (depth - 4) % layers:
        raise InputError(f"depth must be {layers} n + 4, not {depth}.")
    both = bottleneck and compression < 1
    return DenseNet(
        **{
            "stage_sizes": ((depth - 4) // layers,) * 3,
            "growth_rate": growth_rate,
            "bottleneck": bottleneck,
            "compression": compression,
            "stem_features": 2 * growth_rate if both else 16,
            **fields,
        }
    )
