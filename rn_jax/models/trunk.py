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

from rn_jax.errors import InputError
from rn_jax.models.layers import ModuleDef
from rn_jax.stochastic_depth import Subset, sample_gates, test_gates


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
        """The stage's output; `gates` f32[size(, B)], `paths` f32[size], or None."""

        def call(block, x, gate, on_path):
            return block(x, gate, on_path, train=train)

        if self.remat not in REMAT_POLICIES:
            raise InputError(
                f"remat must be one of {', '.join(REMAT_POLICIES)}, not {self.remat!r}."
            )
        if self.remat != "none":
            call = nn.remat(call, policy=REMAT_POLICIES[self.remat])
        apart = self.first is not None
        if apart:
            first = self.first(features=self.features, stride=self.stride, name="first")
            x = call(first, x, _at(gates, 0), _at(paths, 0))
        if length := self.size - apart:
            blocks = self.block(features=self.features, stride=1, name="blocks")
            scan = nn.scan(
                lambda block, x, gate, on_path: (call(block, x, gate, on_path), None),
                variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
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
    infos, width = [], stem_features
    rows = zip(stage_sizes, features, strides, strict=True)
    for stage, (size, out, stride) in enumerate(rows, start=1):
        for place in range(1, size + 1):
            same_shape = place > 1 or (stride == 1 and width == out)
            infos.append(
                BlockInfo(
                    name=f"stage{stage}/{block_name(place, size)}",
                    stage=stage,
                    index=len(infos),
                    same_shape=same_shape,
                    apart=not same_shape or (first_apart and not infos),
                    skippable=has_shortcut or same_shape,
                )
            )
        width = out
    return tuple(infos)


def resolve_gates(
    network: nn.Module,
    gates: jax.Array | Subset | None,
    batch_size: int,
    *,
    train: bool,
) -> jax.Array | Subset | None:
    """The gates that a network uses: those given, or by its stochastic depth.

    Args:
        network: has `num_blocks`, `has_shortcuts` and `stochastic_depth`.
        gates: as the network's call was given them.
        batch_size: B.
        train: gates are drawn from the network's rng "gates"; otherwise they are those
            of the test rule, as f32[L, 1]: every block is open, and no conditional is
            needed.

    Raises:
        InputError: gates of another shape; stochastic depth without shortcuts.
    """
    settings, num_blocks = network.stochastic_depth, network.num_blocks
    if not network.has_shortcuts and (settings or isinstance(gates, Subset)):
        raise InputError(
            "Stochastic depth needs shortcuts: a plain network has no residual "
            "branch to drop."
        )
    if gates is None and settings is not None:
        if not train:
            return test_gates(settings, num_blocks)[:, None]
        return sample_gates(network.make_rng("gates"), settings, num_blocks, batch_size)
    if isinstance(gates, Subset):
        _check_shape("gates.indices", gates.indices[:, 0], (num_blocks,))
    elif gates is not None:
        _check_shape("gates", gates, (num_blocks,), (num_blocks, batch_size))
    return gates


def check_paths(
    network: nn.Module, paths: jax.Array | None, gates: jax.Array | Subset | None
) -> None:
    """Checks `paths`, f32[L], as a network's call was given it.

    Raises:
        InputError: another shape; a network without shortcuts; gates that are subsets.
    """
    if paths is None:
        return
    if not network.has_shortcuts:
        raise InputError("paths needs shortcuts: a plain network has one path only.")
    if isinstance(gates, Subset):
        raise InputError("paths cannot be taken while gates are subsets of examples.")
    _check_shape("paths", paths, (network.num_blocks,))


def _check_shape(name, array, *allowed):
    if array.shape not in allowed and array.shape != (*allowed[0], 1):
        shapes = " or ".join(str(list(shape)) for shape in allowed)
        raise InputError(
            f"{name} must have shape {shapes}, one number per block, "
            f"not {list(array.shape)}."
        )


# --- One layout for files and surgery, one for speed ----------------------------------


def unstack(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables with a subtree for each block: stage2/block01, stage2/block02, ...

    Args:
        variables: collections ("params", "batch_stats", ...) as a model's `init` gives
            them. Trees without stages come back as they are.

    Returns:
        A new nested dict, whose leaves of block l are slices of the stacked ones.
    """
    return {name: _map_stages(tree, _unstack_stage) for name, tree in variables.items()}


def stack(variables: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The inverse of `unstack`: the layout that `model.apply` takes.

    Args:
        variables: collections in the unstacked layout.
        model: the network they belong to, which knows which blocks share a scan.

    Raises:
        InputError: a stage has another number of blocks than the model; or the
            variables are stacked already.
    """
    apart = {b.stage: b.apart for b in reversed(model.blocks)}
    sizes = {s: sum(b.stage == s for b in model.blocks) for s in apart}

    def stack_stage(stage: int, tree):
        if {"first", "blocks"} & set(tree):
            raise InputError("These variables are stacked already.")
        names = sorted(tree, key=_number)
        if len(names) != sizes[stage]:
            raise InputError(
                f"stage{stage} has {len(names)} blocks, the model {sizes[stage]}."
            )
        stacked = {"first": tree[names.pop(0)]} if apart[stage] else {}
        if names:
            rest = [tree[name] for name in names]
            stacked["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rest)
        return stacked

    return {name: _map_stages(tree, stack_stage) for name, tree in variables.items()}


def block_variables(variables: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The variables of one block, by collection, from either layout.

    Args:
        variables: collections of a whole network.
        index: the block's place in a vector of gates, from 0.

    Raises:
        IndexError: there is no such block.
    """
    blocks = {}
    for name, tree in variables.items():
        stages = _map_stages(tree, _unstack_stage)
        in_order = [
            stages[stage][block]
            for stage in sorted((k for k in stages if _is_stage(k)), key=_number)
            for block in sorted(stages[stage], key=_number)
        ]
        if not 0 <= index < len(in_order):
            raise IndexError(f"There are {len(in_order)} blocks, none at {index}.")
        blocks[name] = in_order[index]
    return blocks


def _map_stages(tree, change: Callable):
    tree = jax.tree.map(lambda leaf: leaf, tree)  # new dicts: the caller's stay whole
    return {
        key: change(_number(key), value) if _is_stage(key) else value
        for key, value in tree.items()
    }


def _unstack_stage(stage: int, tree):
    if not {"first", "blocks"} & set(tree):
        return dict(tree)  # already one subtree a block
    blocks = [tree["first"]] if "first" in tree else []
    if "blocks" in tree:
        length = jax.tree.leaves(tree["blocks"])[0].shape[0]
        for i in range(length):
            blocks.append(jax.tree.map(lambda leaf, i=i: leaf[i], tree["blocks"]))
    return {block_name(i, len(blocks)): b for i, b in enumerate(blocks, start=1)}


def block_name(place: int, size: int) -> str:
    """Name of a stage's block, from 1, with leading zeros so that names sort."""
    return f"block{place:0{max(2, len(str(size)))}d}"


def _is_stage(name: str) -> bool:
    return re.fullmatch(r"stage\d+", name) is not None


def _number(name: str) -> int:
    return int(re.search(r"\d+$", name).group())
