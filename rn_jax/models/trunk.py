# SPDX-License-Identifier: Apache-2.0
"""The trunk shared by residual families: stages of equal blocks, run in a loop.

The blocks of a stage that keep the shape of their input share one loop
(`over_open_blocks`, or `nn.scan` where that does not apply), with their variables
stacked on axis 0 under `stageS/blocks`. A first block that changes the shape is
separate, under `stageS/first`. A loop compiles in a time that does not depend on depth;
on a GPU, up to `MOST_IN_LINE` blocks are laid out one after another instead. `unstack`
gives each block its own variables; `stack` is its inverse.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze
from flax.linen.transforms import lift_transform

from rn_jax.errors import InputError, must_be
from rn_jax.models.layers import ModuleDef
from rn_jax.models.skipping import at, closes_blocks, over_open_blocks


@dataclass(frozen=True)
class BlockInfo:
    """One block of a network.

    Attributes:
        name: path of its variables in the unstacked layout, such as "stage2/block01".
        stage: number of its stage, from 1.
        index: l - 1, its position in a vector of gates, from 0.
        same_shape: whether output and input have the same shape.
        apart: whether it is outside its stage's scan, because it changes the shape or
            is the first unit of a pre-activation network.
        skippable: whether a gate of 0 closes it. A layer without a shortcut that
            changes the shape ignores its gate.
    """

    name: str
    stage: int
    index: int
    same_shape: bool
    apart: bool
    skippable: bool


# What the backward pass keeps of a block besides its input, by the setting `remat`.
REMAT_POLICIES = {
    "none": None,
    "cheap": jax.checkpoint_policies.save_only_these_names("conv", "statistics"),
    "all": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(call: Callable, remat: str, *, prevent_cse: bool = True) -> Callable:
    """Return `call(module, ...)` with the rematerialisation that `remat` names.

    Args:
        call: function of a module and its inputs.
        remat: as in `Stage`.
        prevent_cse: whether XLA could otherwise merge the first computation with the
            second. In loops and conditionals it cannot.

    Raises:
        InputError: `remat` is neither "none", "cheap" nor "all".
    """
    if remat not in REMAT_POLICIES:
        raise must_be("remat", f"one of {', '.join(REMAT_POLICIES)}", remat)
    if remat == "none":
        return call
    return nn.remat(call, policy=REMAT_POLICIES[remat], prevent_cse=prevent_cse)


# Largest number of blocks that is laid out in a straight line on a GPU by default. A
# block took at most 4.3 s of CPU time to trace and compile (results/measurements.md).
MOST_IN_LINE = 64


def default_unroll(num_blocks: int, platform: str | None = None) -> int:
    """Return the number of blocks per iteration of a scan that suits a platform.

    On a GPU a straight line launches about three quarters as much as a scan, which
    slices and stacks the arrays of each block (results/measurements.md). A scan is
    faster on a CPU; on a TPU neither has been timed.

    Args:
        num_blocks: number of blocks of the network.
        platform: "cpu", "gpu" or "tpu"; None for JAX's default backend.
    """
    platform = platform or jax.default_backend()
    return num_blocks if platform == "gpu" and num_blocks <= MOST_IN_LINE else 1


class Stage(nn.Module):
    """`size` blocks of one width, the first of them with the stage's stride.

    Attributes:
        block: called as `block(features=..., stride=..., name=...)`; returns a module
            that is called as `module(x, gate, on_path, train=...)`, with a dict of
            the block's own values after `on_path` if there are any, and has
            `closed_is_identity`, see `Block`.
        first: the same for a first block that is apart; None: there is none.
        size: number of blocks.
        features: channels of the stage's output.
        stride: stride of the first block.
        scan_unroll: number of blocks per iteration of the scan; with `size` or more,
            there is no loop.
        gradient: as in `conv2d`; "auto", for reverse mode only, runs open blocks alone
            where gates are those of a mini-batch; see `over_open_blocks`.
        remat: what the backward pass computes again instead of keeping it: "none";
            "cheap", all but convolutions and statistics; "all", whole blocks.
    """

    block: ModuleDef
    first: ModuleDef | None
    size: int
    features: int
    stride: int
    scan_unroll: int
    gradient: str = "auto"
    remat: str = "cheap"

    @nn.compact
    def __call__(self, x, gates, paths, values=None, *, train: bool) -> jax.Array:
        """Return the stage's output: f[B, H, W, C] -> f[B, H', W', features].

        Args:
            x: f[B, H, W, C].
            gates: f32[size], f32[size, B], `Subset` or None.
            paths: f32[size], f32[size, B] or None.
            values: f32[size] or i32[size] by name, see `per_block` of `Block`, or None.
            train: whether the network is in training.
        """

        def call(block, x, *given):  # gate, on_path and values, if there are any
            return block(x, *given, train=train)

        per_block = (gates, paths, values) if values else (gates, paths)
        apart = self.first is not None
        if self.first is not None:
            first = self.first(features=self.features, stride=self.stride, name="first")
            x = rematerialised(call, self.remat)(first, x, *at(per_block, 0))
        length = self.size - apart
        if not length:
            return x
        blocks = self.block(features=self.features, stride=1, name="blocks")
        per_block = at(per_block, slice(int(apart), None))
        in_line = self.scan_unroll >= length
        whole = in_line or self.scan_unroll == 1
        visits_open = whole and self._visits_open(blocks, *per_block[:2])
        # In loops and conditionals XLA merges nothing anyway; `run_open` has a barrier.
        barrier = in_line and not visits_open
        again = rematerialised(call, self.remat, prevent_cse=barrier)

        def visit(block, x, *given):
            # Flax advances its counters of keys at every trace. They are reset so that
            # all traces draw the same numbers; parameters are drawn once.
            if not self.is_initializing():
                block.scope.rng_counters = copy.deepcopy(block.scope.rng_counters)
            return again(block, x, *given)

        if visits_open:
            form = {"length": length, "in_line": in_line}
            run = lift_transform(over_open_blocks, visit, **form)
            return run(blocks, x, *per_block)  # (B, H', W', features)
        scan = nn.scan(
            lambda block, x, *given: (visit(block, x, *given), None),
            variable_axes={True: 0},  # every collection
            split_rngs={True: True},  # every stream of keys
            length=length,
            unroll=self.scan_unroll,
        )
        return scan(blocks, x, *per_block)[0]  # (B, H', W', features)

    def _visits_open(self, blocks, gates, paths):
        """Whether `over_open_blocks` can do what a scan of conditionals does."""
        captures = blocks.is_mutable_collection("intermediates")
        eager = jax.config.jax_disable_jit  # type: ignore[attr-defined]
        if self.gradient != "auto" or captures or eager or self.is_initializing():
            return False
        # A closed block on a path passes no gradient, so it is no identity.
        identity = blocks.closed_is_identity and paths is None
        return identity or not closes_blocks(gates)


def stage_parts(number: int) -> dict[str, tuple[str, ...]]:
    """Return the first entries of `Network.parts`, a module of that name per stage."""
    return {f"stage{stage}": (f"stage{stage}",) for stage in range(1, number + 1)}


def block_infos(
    stage_sizes: Sequence[int],
    features: Sequence[int],
    strides: Sequence[int],
    stem_features: int,
    *,
    has_shortcut: bool,
    first_apart: bool = False,
) -> tuple[BlockInfo, ...]:
    """Return the blocks of a trunk in order.

    Args:
        stage_sizes: number of blocks per stage.
        features: channels per stage.
        strides: stride of each stage's first block.
        stem_features: channels of the stem.
        has_shortcut: whether blocks have a shortcut.
        first_apart: whether the first block is apart even if it keeps the shape.
    """
    widths = (stem_features, *features)

    def facts(stage, place):
        before, out = widths[stage - 1], widths[stage]
        same_shape = place > 1 or (strides[stage - 1] == 1 and before == out)
        return {
            "same_shape": same_shape,
            "apart": not same_shape or (first_apart and stage == place == 1),
            "skippable": has_shortcut or same_shape,
        }

    return number_blocks(stage_sizes, block_name, facts)


def number_blocks(
    stage_sizes: Sequence[int],
    name: Callable[[int, int], str],
    facts: Callable[[int, int], Mapping[str, bool]],
) -> tuple[BlockInfo, ...]:
    """Return a `BlockInfo` for every block of a network, in order.

    Args:
        stage_sizes: number of blocks per stage.
        name: (position in the stage, its size) -> the block's name in the stage.
        facts: (stage, position in it), both from 1 -> the other fields.
    """
    places = [
        (stage, place, size)
        for stage, size in enumerate(stage_sizes, start=1)
        for place in range(1, size + 1)
    ]
    return tuple(
        BlockInfo(f"stage{stage}/{name(place, size)}", stage, i, **facts(stage, place))
        for i, (stage, place, size) in enumerate(places)
    )


# --- The two layouts: one for speed, one for files and surgery ------------------------


def unstack(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables with a subtree for each block: stage2/block01, ...

    Args:
        variables: collections ("params", "batch_stats", any other) as returned by a
            model's `init` and `apply`. Trees without stages are unchanged. A collection
            may have variables of some blocks only, such as those in a scan.

    Returns:
        New nested dicts; the leaves of a block are slices of the stacked ones.
    """
    sizes = _stage_sizes(variables)

    def unstack_stage(stage, tree):
        blocks = {key: tree[key] for key in tree if key not in ("first", "blocks")}
        size, scanned = sizes[stage]
        if "first" in tree:
            blocks[block_name(1, size)] = tree["first"]
        for i in range(scanned if "blocks" in tree else 0):
            name = block_name(size - scanned + i + 1, size)
            blocks[name] = jax.tree.map(lambda leaf, i=i: leaf[i], tree["blocks"])
        return blocks

    return {name: _map_stages(tree, unstack_stage) for name, tree in variables.items()}


def stack(variables: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return variables in the layout of `model.apply`, the inverse of `unstack`.

    Args:
        variables: collections in the unstacked layout.
        model: their network, which determines the blocks that share a scan.

    Raises:
        InputError: a stage and the model have different numbers of blocks, or the
            variables are already stacked.
    """
    if not any("/block" in block.name for block in model.blocks):
        return {name: unfreeze(tree) for name, tree in variables.items()}  # no scans
    apart = {b.stage: b.apart for b in reversed(model.blocks)}
    sizes = {s: sum(b.stage == s for b in model.blocks) for s in apart}
    found: dict[int, set[str]] = {stage: set() for stage in sizes}
    for stage, tree in _stages(variables):
        if {"first", "blocks"} & set(tree):
            raise InputError("These variables are already stacked.")
        found[stage].update(filter(_is_block, tree))

    def check(stage, number):
        if number != sizes[stage]:
            raise InputError(
                f"stage{stage} has {number} blocks, but {sizes[stage]} in the model."
            )

    def stack_stage(stage, tree):
        check(stage, len(found[stage]))
        stacked = {key: tree[key] for key in tree if not _is_block(key)}
        names = sorted(filter(_is_block, tree), key=_number)
        if names and apart[stage] and _number(names[0]) == 1:
            stacked["first"] = tree[names.pop(0)]
        if names:
            check(stage, len(names) + apart[stage])
            rest = [tree[name] for name in names]
            stacked["blocks"] = jax.tree.map(_stacked, *rest)
        return stacked

    return {name: _map_stages(tree, stack_stage) for name, tree in variables.items()}


def _stacked(*leaves):
    # JAX would convert NumPy's float64 to float32.
    in_numpy = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
    return np.stack(leaves) if in_numpy else jnp.stack(leaves)


def block_variables(variables: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return the variables of one block, by collection, from either layout.

    Args:
        variables: collections of a network.
        index: the block's position in a vector of gates, from 0.

    Returns:
        The block's subtree in every collection that has one.

    Raises:
        IndexError: there is no block of that index.
    """
    unstacked = unstack(variables)
    places = sorted(
        {
            (_number(stage), _number(block), stage, block)
            for tree in unstacked.values()
            for stage in filter(_is_stage, tree)
            for block in filter(_is_block, tree[stage])
        }
    )
    if not 0 <= index < len(places):
        raise IndexError(f"There are {len(places)} blocks, but none has index {index}.")
    *_, stage, block = places[index]
    return {
        name: tree[stage][block]
        for name, tree in unstacked.items()
        if block in tree.get(stage, ())
    }


def _stage_sizes(variables):
    """Return (number of blocks, number in the scan) of every stacked stage."""
    first: dict[int, bool] = {}
    scanned: dict[int, int] = {}
    for stage, tree in _stages(variables):
        first[stage] = first.get(stage, False) or "first" in tree
        for leaf in jax.tree.leaves(tree.get("blocks"))[:1]:
            scanned[stage] = leaf.shape[0]
    return {s: (first[s] + scanned.get(s, 0), scanned.get(s, 0)) for s in first}


def _stages(variables):
    """Yield (number, subtree) of every stage in every collection."""
    for tree in variables.values():
        for key in filter(_is_stage, tree):
            yield _number(key), tree[key]


def _map_stages(tree, change: Callable):
    tree = unfreeze(tree)  # new dicts, so that the caller's are unchanged
    return {
        key: change(_number(key), value) if _is_stage(key) else value
        for key, value in tree.items()
    }


def block_name(place: int, size: int) -> str:
    """Return the name of a block in a scanned stage; zeros make names sort.

    Args:
        place: position in the stage, from 1.
        size: number of blocks of the stage.
    """
    return f"block{place:0{max(2, len(str(size)))}d}"


def layer_name(place: int, size: int) -> str:
    """Return the name of a layer in a stage without a scan, the same in both layouts.

    The arguments are those of `block_name`.
    """
    return block_name(place, size).replace("block", "layer")


def _is_stage(name: str) -> bool:
    return re.fullmatch(r"stage\d+", name) is not None


def _is_block(name: str) -> bool:
    return re.fullmatch(r"(block|layer)\d+", name) is not None


def _number(name: str) -> int:
    return int(re.sub(r".*\D", "", name))
