# SPDX-License-Identifier: Apache-2.0
"""FractalNet: Ultra-Deep Neural Networks without Residuals (Larsson et al. 2017).

The expansion rule of section 3 makes a block of C columns:

    f_1(z) = conv(z),   f_{C+1}(z) = [(f_C o f_C)(z)] + [conv(z)],

where + is a join, the element-wise mean of its live inputs, and joins that follow each
other are one. Column c = 1..C of f_C has 2^(c-1) convolutions. A gate belongs to each
input of a join: with 0 the input is dropped, its convolutions are not computed, and the
join is the mean of the others. No signal passes a block unchanged, so there are no
shortcuts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rn_jax.errors import InputError, must_be
from rn_jax.models.gating import if_open, scale
from rn_jax.models.layers import ModuleDef, max_pool
from rn_jax.models.network import Count, Network
from rn_jax.models.normalization import at_least_float32
from rn_jax.models.trunk import BlockInfo, layer_name, number_blocks, stage_parts

_xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # Caffe's


@dataclass(frozen=True)
class JoinInput:
    """The convolutions of one column between two joins of a block.

    Attributes:
        name: name of its variables in the block.
        column: from 1, the shallowest, to C.
        start: number of the join that it starts from; 0 is the block's input.
        end: number of the join that it leads to, from 1.
        layers: number of convolutions: 2 in the deepest of several columns, else 1.
    """

    name: str
    column: int
    start: int
    end: int
    layers: int


def join_inputs(columns: int, column: int | None = None) -> tuple[JoinInput, ...]:
    """Return the inputs of all joins of f_C, join by join and column by column.

    Args:
        columns: C.
        column: the column whose inputs are returned; None: all.
    """
    joins = 2 ** max(columns - 2, 0)
    lengths = {c: max(joins >> (c - 1), 1) for c in range(1, columns + 1)}  # in joins
    places = [
        (end, c, length)
        for end in range(1, joins + 1)
        for c, length in lengths.items()
        if end % length == 0
    ]
    return tuple(
        JoinInput(
            layer_name(i, len(places)), c, end - length, end, 1 + (c == columns > 1)
        )
        for i, (end, c, length) in enumerate(places, start=1)
        if column in (None, c)
    )


def join(inputs: Sequence[jax.Array], gates: jax.Array | None) -> jax.Array:
    """Return the mean of the inputs, weighted by their gates; zeros if all are 0.

    Args:
        inputs: n of f[B, H, W, C].
        gates: f32[n], f32[n, 1], f32[n, B], or None for the plain mean.
    """
    if gates is None:
        return sum(inputs[1:], inputs[0]) / len(inputs)
    total = gates.sum(axis=0, keepdims=True)  # (1,), (1, 1) or (1, B)
    weights = gates / jnp.where(total == 0, 1, total)
    first, *others = map(scale, weights, inputs)
    return sum(others, first)


def sample_drop_path(
    key: jax.Array,
    columns: int,
    blocks: int,
    *,
    rate: float = 0.15,
    global_share: float = 0.5,
) -> jax.Array:
    """Draw the gates of drop-path for a mini-batch, f32[L] (section 3.1).

    Local drop-path drops each input of a join with probability `rate`; if it would drop
    all of them, one, chosen uniformly, is kept. Global drop-path keeps one column, the
    same in all blocks, chosen uniformly. What leads to dropped inputs alone is closed
    too; this changes no other value.

    Args:
        key: PRNG key of this step.
        columns: C.
        blocks: B, the number of blocks.
        rate: probability of a local drop, in [0, 1).
        global_share: probability that drop-path is global.
    """
    inputs = join_inputs(columns)
    mode_key, column_key, local_key = jax.random.split(key, 3)
    chosen = jax.random.randint(column_key, (), 1, columns + 1)
    single = jnp.array([i.column for i in inputs], jnp.int32) == chosen
    keys = jax.random.split(local_key, blocks)
    local = jax.vmap(partial(_sample_local, inputs=inputs, rate=rate))(keys).ravel()
    is_global = jax.random.bernoulli(mode_key, global_share)
    return jnp.where(is_global, jnp.tile(single, blocks), local).astype(jnp.float32)


def _sample_local(key, inputs, rate):
    """Return which inputs of a block's joins are live, bool[n]."""
    keep_key, spare_key = jax.random.split(key)
    kept = jax.random.bernoulli(keep_key, 1 - rate, (len(inputs),))
    spare = jax.random.uniform(spare_key, (len(inputs),))
    ends = np.array([i.end for i in inputs])
    is_used = dict.fromkeys(range(ends[-1]), jnp.array(False))
    is_used[ends[-1]] = jnp.array(True)
    live = kept
    for end in range(ends[-1], 0, -1):
        at = np.flatnonzero(ends == end)
        one = spare[at] == spare[at].max()
        mine = jnp.where(kept[at].any(), kept[at], one) & is_used[end]
        live = live.at[at].set(mine)
        for place, is_live in zip(at, mine, strict=True):
            is_used[inputs[place].start] |= is_live
    return live


class FractalLayers(nn.Module):
    """An input of a join: 3x3 convolutions, each with dropout, BatchNorm and ReLU.

    Attributes:
        features: channels of the output.
        layers: number of convolutions.
        pool: whether 2x2 max-pooling follows, as before the last join of a block.
        dropout: rate of dropout.
        conv, norm, activation: as in `Block`.
    """

    features: int
    layers: int
    pool: bool
    dropout: float
    conv: ModuleDef
    norm: ModuleDef
    activation: Callable

    @nn.compact
    def __call__(self, x, gate=None, *, train: bool):
        """Return the input of the join; zeros, not computed, if the gate is 0.

        Args:
            x: f[B, H, W, C].
            gate: f32[], f32[1], f32[B] or None; see `if_open`.
            train: whether dropout is on.
        """

        def output(self):
            y = x
            for i in range(1, self.layers + 1):
                y = self.conv(self.features, 3, name=f"conv{i}")(y)
                y = nn.Dropout(self.dropout, deterministic=not train)(y)
                y = self.activation(self.norm(name=f"bn{i}")(y))
            return max_pool(y, 2, 2) if self.pool else y

        sides = [max(n // 2, 1) if self.pool else n for n in x.shape[1:3]]
        closed = jnp.zeros((x.shape[0], *sides, self.features), x.dtype)
        return if_open(self, gate, output, closed)


class FractalBlock(nn.Module):
    """f_C and 2x2 max-pooling.

    As in the authors' code, each input of the last join is pooled before the join.

    Attributes:
        layers: called as `layers(layers=..., pool=..., name=...)`; see `FractalLayers`.
        inputs: inputs of the joins, see `join_inputs`.
    """

    layers: ModuleDef
    inputs: Sequence[JoinInput]

    @nn.compact
    def __call__(self, x, gates=None, *, train: bool):
        """Return f[B, H / 2, W / 2, features] from f[B, H, W, C].

        Args:
            x: f[B, H, W, C].
            gates: f32[n], f32[n, 1] or f32[n, B] for n inputs of joins, or None. A join
                with a single input, as in a plain network, ignores its gate.
            train: whether dropout is on.
        """
        last = self.inputs[-1].end
        joined, place = {0: x}, 0
        for end, group in groupby(self.inputs, key=lambda i: i.end):
            inputs = list(group)
            several = gates is not None and len(inputs) > 1
            own = gates[place : place + len(inputs)] if several else None
            place += len(inputs)
            joined[end] = join(
                [
                    self.layers(layers=i.layers, pool=end == last, name=i.name)(
                        joined[i.start], None if own is None else own[n], train=train
                    )
                    for n, i in enumerate(inputs)
                ],
                own,
            )
        return joined[last]


class FractalNet(Network):
    """Fractal blocks with 2x2 max-pooling between them, and a classifier (figure 1).

    `gates` are the state of drop-path: one for each input of a join, block by block, in
    the order of `join_inputs`. `column_gates` are those that compute one column alone.
    In training with `drop_path` they are drawn by `sample_drop_path` for the
    mini-batch; at test all inputs are live.

    Convolutions have no biases. BatchNorm has a scale and a shift, which the authors'
    Caffe layer lacks.

    Attributes:
        features: channels of each block.
        columns: C; the depth is 2^(C-1) convolutions per block and the classifier.
        column: the column that exists alone, from 1: with C the plain network of the
            same depth. Its variables have the names that they have in the whole
            network, whose variables it can be applied to. None: all columns.
        drop_path: rate of local drop-path, 0.15 in the paper; 0: no drop-path.
        global_share: share of mini-batches with global drop-path.
        dropout: rate of dropout in each block, (0, 0.1, 0.2, 0.3, 0.4) in the paper;
            empty: none.

    Raises:
        InputError: there is no such column, `drop_path` or `global_share` is no
            probability, or `dropout` does not have one entry per block.
    """

    features: Sequence[Count] = (64, 128, 256, 512, 512)
    columns: Count = 3
    column: Count | None = None
    drop_path: float = 0.0
    global_share: float = 0.5
    dropout: Sequence[float] = ()

    def __post_init__(self):
        super().__post_init__()
        if len(self.dropout) not in (0, len(self.features)):
            raise InputError(
                f"dropout must have one entry for each of {len(self.features)} blocks."
            )
        if self.column is not None and self.column > self.columns:
            raise must_be("column", f"None or at most {self.columns}", self.column)
        if not 0 <= self.drop_path < 1:
            raise must_be("drop_path", "in [0, 1)", self.drop_path)
        if not 0 <= self.global_share <= 1:
            raise must_be("global_share", "in [0, 1]", self.global_share)

    def forward(self, images, gates, paths, *, train: bool):
        """Return the logits; see `Network.forward`."""
        x = images.astype(self.dtype or at_least_float32(images.dtype))
        rates = self.dropout or (0.0,) * len(self.features)
        for stage, rate in enumerate(rates, start=1):
            name = f"stage{stage}"
            now = self.trains(name, train)
            conv, norm = self.layers(train=now, kernel_init=_xavier)
            parts: Any = {"conv": conv, "norm": norm, "activation": self.activation}
            fields = {"features": self.features[stage - 1], "dropout": rate, **parts}
            layers = partial(FractalLayers, **fields)
            block = FractalBlock(layers, self._inputs, name=name)
            x = block(x, *self.of_stage(stage, gates), train=now)
            x = self.feature(name, x)
        x = self.feature("final", x)
        return self.classify(x.mean(axis=(1, 2)), kernel_init=_xavier)

    def column_gates(self, column: int) -> jax.Array:
        """Return the gates f32[L] that compute one column alone, from 1 to C.

        Raises:
            InputError: there is no such column.
        """
        if column not in range(1, self.columns + 1):
            raise must_be("column", f"from 1 to {self.columns}", column)
        gates = [float(i.column == column) for i in self._inputs]
        return jnp.tile(jnp.array(gates, jnp.float32), len(self.features))

    @property
    def draws_gates(self) -> bool:
        """Whether gates are drawn in training."""
        return self.drop_path > 0 and self._joins

    def draw_gates(self, key, batch_size, first_index=0):
        """Draw the gates of drop-path; see `Network.draw_gates`."""
        rates = {"rate": self.drop_path, "global_share": self.global_share}
        return sample_drop_path(key, self.columns, len(self.features), **rates)

    def eval_gates(self):
        """Return gates of 1: at test all inputs of a join are live."""
        return jnp.ones(self.num_blocks, jnp.float32)

    @property
    def _inputs(self):
        return join_inputs(self.columns, self.column)

    @property
    def _joins(self):
        return self.columns > 1 and self.column is None

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """The blocks, as stages."""
        return stage_parts(len(self.features))

    @cached_property
    def blocks(self) -> tuple[BlockInfo, ...]:
        """The inputs of all joins, in order."""
        facts = {"same_shape": False, "apart": True, "skippable": self._joins}
        return number_blocks(
            (len(self._inputs),) * len(self.features),
            lambda place, size: self._inputs[place - 1].name,
            lambda stage, place: facts,
        )
