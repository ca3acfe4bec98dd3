# SPDX-License-Identifier: Apache-2.0
"""The trunk that residual families share: stages of equal blocks, run in a scan.

The blocks of a stage that keep the shape of their input run in one `nn.scan`, their
variables stacked on axis 0 under `stageS/blocks`; a first block that changes the shape
stands apart, under `stageS/first`. Compile time is then flat in depth. `unstack` gives
every block variables of its own, `stack` is its inverse.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze

from rn_jax.errors import InputError
from rn_jax.models.layers import ModuleDef


@dataclass(frozen=True)
class BlockInfo:
    """One block of a network.

    Attributes:
        name: path of its variables in the unstacked layout, as "stage2/block01".
        stage: stage it belongs to, from 1.
        index: l - 1, its place in a vector of gates, from 0.
        same_shape: output and input have one shape.
        apart: it stands outside its stage's scan, because it changes the shape or, in
            pre-activation networks, is the first of all.
        skippable: a gate of 0 acts on it. A layer without a shortcut that changes the
            shape cannot be skipped and ignores its gate.
    """

    name: str
    stage: int
    index: int
    same_shape: bool
    apart: bool
    skippable: bool


# What the backward pass keeps of a block beside its input, by the setting `remat`.
REMAT_POLICIES = {
    "none": None,
    "cheap": jax.checkpoint_policies.save_only_these_names("conv", "statistics"),
    "all": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(call: Callable, remat: str) -> Callable:
    """`call(module, ...)`, of which the backward pass keeps what `remat` says.

    Raises:
        InputError: `remat` is neither "none", "cheap" nor "all".
    """
    if remat not in REMAT_POLICIES:
        raise InputError(
            f"remat must be one of {', '.join(REMAT_POLICIES)}, not {remat!r}."
        )
    return call if remat == "none" else nn.remat(call, policy=REMAT_POLICIES[remat])


class Stage(nn.Module):
    """`size` blocks of one width, the first of them with the stage's stride.

    Attributes:
        block: called as `block(features=..., stride=..., name=...)`; the module it
            gives is called as `module(x, gate, on_path, train=...)`.
        first: the same for the first block, where it stands apart.
        features: channels of the stage's output.
        scan_unroll: blocks laid out one after another per turn of the scan's loop.
        remat: what is computed again in the backward pass instead of kept: "none";
            "cheap", all but convolutions and statistics; "all", whole blocks.
    """

    block: ModuleDef
    first: ModuleDef | None
    size: int
    features: int
    stride: int
    scan_unroll: int
    remat: str = "cheap"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        gates: jax.Array | None,
        paths: jax.Array | None,
        *,
        train: bool,
    ) -> jax.Array:
        """The stage's output; `gates` f32[size(, B)], `paths` the same, or None."""

        def call(block, x, gate, on_path):
            return block(x, gate, on_path, train=train)

        call = rematerialised(call, self.remat)
        apart = self.first is not None
        if self.first is not None:
            first = self.first(features=self.features, stride=self.stride, name="first")
            x = call(first, x, _at(gates, 0), _at(paths, 0))
        if length := self.size - apart:
            blocks = self.block(features=self.features, stride=1, name="blocks")
            scan = nn.scan(
                lambda block, x, gate, on_path: (call(block, x, gate, on_path), None),
                variable_axes={True: 0},  # every collection
                split_rngs={True: True},  # every stream of keys
                length=length,
                unroll=self.scan_unroll,
            )
            rest = slice(int(apart), None)
            x, _ = scan(blocks, x, _at(gates, rest), _at(paths, rest))
        return x


def _at(array, index):
    return None if array is None else array[index]


def block_infos(
    stage_sizes: Sequence[int],
    features: Sequence[int],
    strides: Sequence[int],
    stem_features: int,
    *,
    has_shortcut: bool,
    first_apart: bool = False,
) -> tuple[BlockInfo, ...]:
    """The blocks of a trunk in order, from its table of stages."""
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
    """A `BlockInfo` for every block of a network, in order.

    Args:
        stage_sizes: blocks per stage.
        name: (place in the stage, its size) -> the block's name in it.
        facts: (stage, place in it), both from 1 -> the remaining fields.
    """
    places = [
        (stage, place, size)
        for stage, size in enumerate(stage_sizes, start=1)
        for place in range(1, size + 1)
    ]
    return tuple(
        BlockInfo(
            name=f"stage{stage}/{name(place, size)}",
            stage=stage,
            index=index,
            **facts(stage, place),
        )
        for index, (stage, place, size) in enumerate(places)
    )


# --- One layout for files and surgery, one for speed ----------------------------------


def unstack(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables with a subtree for each block: stage2/block01, ...

    Args:
        variables: collections ("params", "batch_stats", any other) as a model's `init`
            and `apply` give them. Trees without stages come back as they are. What one
            collection has of some blocks only, as of those in a scan, stays theirs.

    Returns:
        A new nested dict, whose leaves of block l are slices of the stacked ones.
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
    """Return the inverse of `unstack`: the layout that `model.apply` takes.

    Args:
        variables: collections in the unstacked layout.
        model: the network they belong to, which knows which blocks share a scan.

    Raises:
        InputError: a stage has another number of blocks than the model; or the
            variables are stacked already.
    """
    if not any("/block" in block.name for block in model.blocks):
        return {name: unfreeze(tree) for name, tree in variables.items()}  # no scans
    apart = {b.stage: b.apart for b in reversed(model.blocks)}
    sizes = {s: sum(b.stage == s for b in model.blocks) for s in apart}
    found: dict[int, set[str]] = {stage: set() for stage in sizes}
    for stage, tree in _stages(variables):
        if {"first", "blocks"} & set(tree):
            raise InputError("These variables are stacked already.")
        found[stage].update(filter(_is_block, tree))

    def check(stage, number):
        if number != sizes[stage]:
            raise InputError(
                f"stage{stage} has {number} blocks, the model {sizes[stage]}."
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
    # JAX would turn NumPy's float64 into float32.
    in_numpy = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
    return np.stack(leaves) if in_numpy else jnp.stack(leaves)


def block_variables(variables: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return the variables of one block, by collection, from either layout.

    Args:
        variables: collections of a whole network.
        index: the block's place in a vector of gates, from 0.

    Returns:
        The block's subtree in every collection that has one.

    Raises:
        IndexError: there is no such block.
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
        raise IndexError(f"There are {len(places)} blocks, none at {index}.")
    *_, stage, block = places[index]
    return {
        name: tree[stage][block]
        for name, tree in unstacked.items()
        if block in tree.get(stage, ())
    }


def _stage_sizes(variables):
    """(blocks, those of them in a scan) of every stage that is stacked."""
    first: dict[int, bool] = {}
    scanned: dict[int, int] = {}
    for stage, tree in _stages(variables):
        first[stage] = first.get(stage, False) or "first" in tree
        for leaf in jax.tree.leaves(tree.get("blocks"))[:1]:
            scanned[stage] = leaf.shape[0]
    return {s: (first[s] + scanned.get(s, 0), scanned.get(s, 0)) for s in first}


def _stages(variables):
    """(number, subtree) of every stage in every collection."""
    for tree in variables.values():
        for key in filter(_is_stage, tree):
            yield _number(key), tree[key]


def _map_stages(tree, change: Callable):
    tree = unfreeze(tree)  # new dicts: the caller's stay whole
    return {
        key: change(_number(key), value) if _is_stage(key) else value
        for key, value in tree.items()
    }


def block_name(place: int, size: int) -> str:
    """Name of a scanned stage's block, from 1, with zeros so that names sort."""
    return f"block{place:0{max(2, len(str(size)))}d}"


def layer_name(place: int, size: int) -> str:
    """The same in a stage without a scan, whose layers have names in both layouts."""
    return block_name(place, size).replace("block", "layer")


def _is_stage(name: str) -> bool:
    return re.fullmatch(r"stage\d+", name) is not None


def _is_block(name: str) -> bool:
    return re.fullmatch(r"(block|layer)\d+", name) is not None


def _number(name: str) -> int:
    return int(re.sub(r".*\D", "", name))
