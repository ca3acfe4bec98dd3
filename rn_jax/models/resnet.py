# SPDX-License-Identifier: Apache-2.0
"""Residual and plain networks of Deep Residual Learning (He et al. 2015).

Later papers use the same trunk; their blocks are in files of their own.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, final

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict

from rn_jax.errors import InputError, must_be, unknown_name
from rn_jax.models.gating import gated_layer, gated_sum, scale
from rn_jax.models.layers import ModuleDef, Shortcut, max_pool
from rn_jax.models.network import Count
from rn_jax.models.starts import ResidualNetwork
from rn_jax.models.trunk import (
    BlockInfo,
    Stage,
    block_infos,
    default_unroll,
    stage_parts,
)


class Block(nn.Module):
    """A block of the trunk, y = f(h(x) + F(x)) (He et al. 2016, equations 1 and 2).

    A paper's block overrides what its figure changes: the shortcut h (`shortcut`), the
    residual branch F (`residual`), or the function after the sum, f (`after`). A gate
    multiplies F(x), which is not computed if the gate is 0. These methods create their
    modules where they call them, as a compact `__call__` does.

    Attributes:
        features: channels of the output.
        stride: stride of the block and its shortcut.
        shortcut_kind: kind of the shortcut, see `Shortcut`; None for plain networks.
        conv: called as `conv(features, kernel_size, stride)`.
        norm: called as `norm()`; already set for training or test.
        activation: called as `activation(x)`.
        scalar: initial value of a learned number that multiplies F(x), before the gate
            does; None: there is none. See `rn_jax.models.starts`.
        has_shortcut: class attribute: whether the block has a shortcut.
        preactivation: class attribute: "relu" or "bn_relu", with which F starts and the
            trunk therefore ends; None if F starts with a convolution.
        branch_ends: class attribute: "norm" or "weight", the kind of the last layer of
            F; None if an activation follows it, or for a block that does not say.
        branch_depth: number m of weight layers of F. With `branch_ends`, the last one
            is named "conv<m>" and its BatchNorm "bn<m>", or "bn<k + m>".
        leading_norms: class attribute: number k of BatchNorms of F that precede its
            first weight layer, without an activation between them.
        begins_closed: class attribute: whether a weight of the block's own makes F
            zero at first.
        per_block: class attribute: names of further keywords of `shortcut` and
            `residual`, whose values differ from block to block. "depth", f32[], grows
            from 0 in the network's first block to 1 in its last, and "index", i32[], is
            l - 1, the block's place in a vector of gates. Any other value, f32[], is an
            entry of the L numbers that the network's `block_kwargs` has by that name.

    Raises:
        InputError: a subclass defines `__call__`, or a call has not all values of
            `per_block`.
    """

    features: int
    stride: int
    shortcut_kind: str | None
    conv: ModuleDef
    norm: ModuleDef
    activation: Callable
    scalar: float | None = dataclasses.field(default=None, kw_only=True)

    has_shortcut: ClassVar[bool] = True
    preactivation: ClassVar[str | None] = None
    branch_ends: ClassVar[str | None] = None
    leading_norms: ClassVar[int] = 0
    begins_closed: ClassVar[bool] = False
    per_block: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            raise InputError(
                f"{cls.__name__} defines __call__, which belongs to Block; instead, "
                "define residual(self, x, *, train), shortcut(self, x, *, train) or "
                "after(self, y, *, train)."
            )

    @final
    @nn.compact
    def __call__(self, x, gate=None, on_path=None, values=None, *, train: bool):
        """Return f(h(x) + gate * F(x)), f[B, H / stride, W / stride, features].

        Args:
            x: f[B, H, W, C].
            gate: f32[], f32[1], f32[B], `Subset` or None; see `gated_sum`.
            on_path: f32[], f32[B] or None; see `gated_sum`.
            values: the block's own, f32[] or i32[] by name, if there are `per_block`.
            train: whether the network is in training.
        """
        given = dict(values or {})
        if given.keys() != {*self.per_block}:
            wanted = f"a dict of {', '.join(self.per_block)}"
            raise must_be("values", wanted if self.per_block else "None", values)
        x = self.before(x, train=train)  # (B, H, W, C)
        # (B, H / stride, W / stride, features)
        y = self.sum(x, gate, on_path, train=train, **given)
        return self.after(y, train=train)

    def before(self, x, *, train: bool):
        """Return the input of both paths, f[B, H, W, C]: that of the block."""
        return x

    def shortcut(self, x, *, train: bool):
        """Return h(x), f[B, H / stride, W / stride, features]."""
        parts = self.shortcut_kind, self.features, self.stride, self.conv, self.norm
        return Shortcut(*parts, name="shortcut")(x)

    def residual(self, x, *, train: bool):
        """Return F(x), with the shape of h(x)."""
        raise NotImplementedError(f"{type(self).__name__} must define residual.")

    def branch(self, x, **given):
        """Return F(x), times the learned scalar if there is one."""
        y = self.residual(x, **given)
        if self.scalar is None:
            return y
        start = nn.initializers.constant(self.scalar)
        return scale(self.param("scalar", start, (), jnp.float32), y)

    def sum(self, x, gate, on_path, **given):
        """Return h(x) + gate * F(x): see `gated_sum`.

        `given` are the keywords of `shortcut` and `residual`.
        """
        shortcut = self.shortcut(x, **given)
        branch = partial(type(self).branch, **given)
        return gated_sum(self, x, shortcut, branch, gate, on_path)

    def after(self, y, *, train: bool):
        """Return f(y), the activation after the sum."""
        return self.activation(y)

    @property
    def closed_is_identity(self) -> bool:
        """Whether f(h(x)) = x for the output x of such a block and equal shapes.

        A closed block is then not visited at all. For overridden parts this is unknown,
        so the answer is False; a subclass may override this property too.
        """
        idempotent = self.activation is nn.relu
        return self._is_as_in(Block) and idempotent and self.shortcut_kind != "C"

    def _is_as_in(self, base):
        """Return whether what a closed block returns is that of `base`."""
        parts = ("before", "shortcut", "sum", "after")
        return all(getattr(type(self), p) is getattr(base, p) for p in parts)


def __getattr__(name):
    if name in ("identity", "basic_branch"):
        raise ImportError(
            f"{name} is now a method of the blocks: in a subclass of BasicBlock, call "
            "super().shortcut(x, train=train) or super().residual(x, train=train)."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""

    branch_ends = "norm"
    branch_depth = 2

    def residual(self, x, *, train: bool):
        """Return F(x): f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = self.activation(self.norm(name="bn1")(y))
        y = self.conv(self.features, 3, name="conv2")(y)
        return self.norm(name="bn2")(y)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolution and a shortcut (figure 5, right).

    With `groups` it is the block of ResNeXt (Xie et al. 2017, figure 3c); with a larger
    `base_width`, that of wide ResNet-50 and -101.

    Attributes:
        groups: cardinality C, the number of feature groups of the 3x3 convolution.
        base_width: d; a group has floor(w d / 64) channels with w = `features` / 4.
        stride_on: convolution with the stride: "3x3" (fb.resnet.torch, torchvision), or
            "1x1", the first one (the authors' Caffe models).

    Raises:
        InputError: `stride_on` is neither.
    """

    groups: int = 1
    base_width: int = 64
    stride_on: str = "3x3"

    branch_ends = "norm"
    branch_depth = 3

    def residual(self, x, *, train: bool):
        """Return F(x): f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        width = group_width(self.features, self.base_width) * self.groups
        first, second = bottleneck_strides(self)
        y = self.conv(width, 1, first, name="conv1")(x)
        y = self.activation(self.norm(name="bn1")(y))
        y = self.conv(width, 3, second, groups=self.groups, name="conv2")(y)
        y = self.activation(self.norm(name="bn2")(y))
        y = self.conv(self.features, 1, name="conv3")(y)
        return self.norm(name="bn3")(y)


def bottleneck_strides(block: nn.Module) -> tuple[int, int]:
    """Return the strides of a bottleneck's first 1x1 and its 3x3 convolution.

    Raises:
        InputError: `stride_on` is neither "1x1" nor "3x3".
    """
    strides = {"1x1": (block.stride, 1), "3x3": (1, block.stride)}
    if block.stride_on not in strides:
        raise InputError(f'stride_on must be "1x1" or "3x3", not {block.stride_on!r}.')
    return strides[block.stride_on]


def group_width(features: int, base_width: int) -> int:
    """Return floor(w d / 64), w = features / 4: channels of a bottleneck's group."""
    return features // 4 * base_width // 64


class PlainLayer(Block):
    """One 3x3 convolution of a plain network (figure 3, middle): no shortcut.

    Its gate interpolates between the layer (1) and the identity (0). A layer that
    changes the shape ignores its gate.

    Attributes:
        downsample: "stride", a convolution with the stride; or "max_pool", a
            convolution of stride 1 followed by 2x2 max-pooling.
    """

    downsample: str = "stride"

    has_shortcut = False

    def residual(self, x, *, train: bool):
        """Return F(x): f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        if self.downsample not in ("stride", "max_pool"):
            raise must_be("downsample", '"stride" or "max_pool"', self.downsample)
        by_pooling = self.downsample == "max_pool" and self.stride > 1
        stride = 1 if by_pooling else self.stride
        y = self.conv(self.features, 3, stride, name="conv")(x)
        y = self.activation(self.norm(name="bn")(y))
        return max_pool(y, self.stride, self.stride) if by_pooling else y

    def sum(self, x, gate, on_path, *, train: bool):  # type: ignore[override]
        """Return gate * F(x) + (1 - gate) * x, or F(x) if the shapes differ."""
        if self.stride == 1 and x.shape[-1] == self.features:
            return gated_layer(self, x, partial(type(self).residual, train=train), gate)
        return self.residual(x, train=train)

    def after(self, y, *, train: bool):
        """Return y, which is already activated."""
        return y

    @property
    def closed_is_identity(self) -> bool:
        """Whether `sum` and `after` are those of this class."""
        return self._is_as_in(PlainLayer)


# Values of `per_block` that follow from the number of blocks.
_BY_PLACE: Mapping[str, Callable] = {
    "depth": partial(jnp.linspace, 0.0, 1.0, dtype=jnp.float32),
    "index": partial(jnp.arange, dtype=jnp.int32),
}


class ResNet(ResidualNetwork):
    """The trunk of the residual papers and their plain counterparts.

    A stem, stages of blocks with a stride of 2 between them, global average pooling and
    a fully connected layer. On CIFAR the depth is 6n + 2 with basic and 9n + 2 with
    bottleneck blocks (section 4.2); table 1 has the networks for ImageNet.

    Attributes:
        stage_sizes: number of blocks per stage.
        features: channels of each stage's output.
        stem: "small", a 3x3 convolution, for images of 32 pixels; "imagenet", a 7x7
            convolution of stride 2 and 3x3 max-pooling of stride 2; or, for
            pre-activation units, "imagenet_linear", the same with BatchNorm and ReLU
            moved to the first unit (timm's resnetv2).
        stem_features: channels of the stem; None: those of the first stage.
        shortcut: "A", "A_centered", "A_pooled", "B", "B_linear" or "C"; see `Shortcut`.
        block: `BasicBlock`, `Bottleneck`, `PlainLayer` or another subclass of `Block`.
        block_kwargs: further fields of the block, such as {"base_width": 128}, and L
            numbers for each name in its `per_block` but "depth" and "index".
        conv_bias: whether convolutions have biases (the code of Huang et al. 2016).
        scan_unroll: number of blocks per iteration of a scan; see `Stage`. None: what
            suits the backend; see `default_unroll`.
        remat: "none", "cheap" or "all"; see `Stage`.

    Raises:
        InputError: an unknown stem, too few `features`, a block of another kind, or an
            unknown field in `block_kwargs` or not L numbers there.
    """

    stage_sizes: Sequence[Count]
    features: Sequence[Count] = (16, 32, 64)
    stem: Literal["small", "imagenet", "imagenet_linear"] = "small"
    stem_features: Count | None = None
    shortcut: str | None = "A"
    block: ModuleDef = BasicBlock
    block_kwargs: Mapping[str, Any] = FrozenDict()
    conv_bias: bool = False
    scan_unroll: Count | None = None
    remat: str = "cheap"

    def __post_init__(self):
        super().__post_init__()
        if len(self.features) < len(self.stage_sizes):
            raise InputError(
                f"features must have an entry for each of {len(self.stage_sizes)} "
                f"stages, not {self.features}."
            )
        if not (isinstance(kind := self.block_class, type) and issubclass(kind, Block)):
            wanted = "a subclass of rn_jax.models.resnet.Block that defines residual"
            raise must_be("block", f"{wanted}(self, x, *, train)", self.block)
        if self.stem == "imagenet_linear" and not kind.preactivation:
            raise InputError(
                'stem="imagenet_linear" leaves BatchNorm and ReLU to a pre-activation '
                f"unit, which {kind.__name__} is not."
            )
        listed = {*kind.per_block} - {*_BY_PLACE}
        fields = {*kind.__dataclass_fields__} | listed
        if unknown := sorted(set(self.block_kwargs) - fields):
            own = fields - set(Block.__dataclass_fields__)
            raise unknown_name(f"field of {kind.__name__}", unknown[0], own)
        if listed:
            numbers = {name: self._one_per_block(name) for name in sorted(listed)}
            kwargs: Any = FrozenDict({**self.block_kwargs, **numbers})
            object.__setattr__(self, "block_kwargs", kwargs)
        self.check_start(kind)

    def forward(self, images, gates, paths, *, train: bool):
        """Return the logits; see `Network.forward`."""
        values = {name: self._values(name) for name in self.block_class.per_block}
        window, stride = (3, 1) if self.stem == "small" else (7, 2)
        # (B, H, W, stem_features), H and W as the stem leaves them
        conv, norm = self._layers("stem", train)
        x = conv(self._stem_features, window, stride, name="stem_conv")(images)
        if self.stem != "imagenet_linear":
            x = self.activation(self.outside(norm)(name="stem_bn")(x))
        x = self.feature("stem", x)
        if self.stem != "small":
            x = max_pool(x, 3, 2, padding=1)
        inputs = []  # of the stages so far
        for stage, size in enumerate(self.stage_sizes, start=1):
            inputs.append(x)
            name = f"stage{stage}"
            conv, norm = self._layers(name, train)
            block = self._block(conv, norm)
            apart = any(b.apart for b in self.blocks if b.stage == stage)
            first = block if apart else None
            if self._first_activated and stage == 1:
                first = partial(block, activated=True)  # by the stem, for both paths
            # (B, H / 2^(stage - 1), W / 2^(stage - 1), features[stage - 1])
            x = Stage(
                block,
                first,
                size=size,
                features=self.features[stage - 1],
                stride=self._strides[stage - 1],
                scan_unroll=self.scan_unroll or default_unroll(self.num_blocks),
                gradient=self.conv_gradient,
                remat=self.remat,
                name=name,
            )(
                x,
                *self.of_stage(stage, gates, paths, values),
                train=self.trains(name, train),
            )
            x = self.after_stage(x, inputs, paths, conv=conv, norm=norm)
            x = self.feature(name, x)
        if self._preactivation:  # again after the last sum
            if self._preactivation == "bn_relu":
                _, norm = self._layers("final", train)
                x = self.outside(norm)(name="final_bn")(x)
            x = self.activation(x)
        x = self.feature("final", x)
        return self.classify(x.mean(axis=(1, 2)))  # (B, num_classes)

    def after_stage(self, y, inputs, paths, **layers: Any):
        """Return what follows a stage: here y itself.

        Args:
            y: f[B, H, W, C], output of the stage's last block.
            inputs: inputs of the stages so far; the first is the stem's output.
            paths: as in `forward`.
            **layers: `conv` and `norm`, as the blocks have them.
        """
        return y

    def _layers(self, part, train):
        """Return convolution and normalisation of a part of the network."""
        now = self.trains(part, train)
        return self.layers(train=now, use_bias=self.conv_bias)

    def _block(self, conv, norm):
        """Return the block of a stage as a partial of all but its size."""
        layers: Any = {"conv": conv, "norm": norm, "activation": self.activation}
        listed = self.block_class.per_block
        kwargs = {k: v for k, v in self.block_kwargs.items() if k not in listed}
        fields = {"shortcut_kind": self.shortcut, **layers, **kwargs}
        return self.begin(partial(self.block, **fields))

    @nn.nowrap
    def _one_per_block(self, name):
        """Return the numbers of `block_kwargs` by that name, or raise an InputError."""
        numbers: Any = self.block_kwargs.get(name)
        count = self.num_blocks
        with contextlib.suppress(TypeError, ValueError):
            found = tuple(map(float, numbers))
            if len(found) == count:
                return found
        wanted = f"{count} numbers, one for each block"
        raise must_be(f"{name} in block_kwargs", wanted, numbers)

    def _values(self, name):
        """Return the blocks' values of one of `per_block`, along axis 0."""
        if name in _BY_PLACE:
            return _BY_PLACE[name](self.num_blocks)
        return jnp.array(self.block_kwargs[name], jnp.float32)

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Stem, stages and, with pre-activation units, the last BatchNorm."""
        final = {"final": ("final_bn",)} if self.norm_first else {}
        stages = stage_parts(len(self.stage_sizes))
        return {"stem": ("stem_conv", "stem_bn"), **stages, **final}

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
        """Whether blocks have a shortcut."""
        return self.block_class.has_shortcut

    @property
    def norm_first(self) -> bool:
        """Whether BatchNorm precedes its convolution."""
        return self._preactivation == "bn_relu"

    @property
    def _preactivation(self):
        return self.block_class.preactivation

    @property
    def _first_activated(self):
        """Whether the stem ends with what a pre-activation unit starts with."""
        return self._preactivation is not None and self.stem != "imagenet_linear"

    @property
    def block_class(self) -> type[Block]:
        """The class of the block, even if `block` is a partial of it."""
        block: Any = self.block.func if isinstance(self.block, partial) else self.block
        return block
