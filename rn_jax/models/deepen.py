# SPDX-License-Identifier: Apache-2.0
"""Deeper networks that compute what the shallow one does (He et al. 2015)."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rn_jax.errors import InputError
from rn_jax.models import preact, resnet, resnext
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.trunk import block_name, stack, unstack
from rn_jax.stochastic_depth import StochasticDepth, survival_probs

# Which layer to silence so that a branch is zero: the scale and bias of its last
# BatchNorm, or the kernel of its last convolution where no BatchNorm follows.
_LAST_LAYER: dict[Any, tuple[str, ...]] = {
    resnet.BasicBlock: ("bn2",),
    resnet.Bottleneck: ("bn3",),
    resnext.SplitTransformMerge: ("bn3",),
    resnext.EarlyConcatenation: ("bn3",),
    preact.ReluOnlyPreactivation: ("bn3", "bn2"),
    preact.FullPreactivation: ("conv3", "conv2"),
}


def deepen(
    model: nn.Module,
    variables: Mapping[str, Any],
    stage_sizes: Sequence[int],
    *,
    key: jax.Array,
) -> tuple[nn.Module, dict[str, Any]]:
    """A deeper network whose added blocks are the identity: the same logits at test.

    This is the paper's argument that a deeper network exists which is no worse. The
    added blocks stand at the end of each stage. A residual block is the identity if its
    branch is zero, which its last layer alone decides; the others start as usual, so
    that the block can learn. A plain layer is the identity if its kernel is and its
    BatchNorm's statistics are 0 and 1; in training, its batch has others.

    With stochastic depth, every block keeps its survival probability p_l, and an added
    block gets that of the block before it. Most schedules depend on the number of
    blocks, so the deeper network lists its probabilities in an explicit
    `StochasticDepth.schedule`. That holds for `num_open` too: the deeper network draws
    each block independently with p_l = num_open / L, L being the number of blocks of
    `model`, because no fixed count gives both the old blocks and the new ones that
    probability. "uniform" stays as it is.

    Args:
        model: a `ResNet` of basic, bottleneck, ResNeXt, plain or pre-activation blocks,
            whose shortcuts are the identity where the shape stays (not "C").
        variables: its "params" and "batch_stats", stacked or not.
        stage_sizes: blocks per stage of the deeper network.
        key: for the layers of the added blocks that decide nothing yet.

    Returns:
        The deeper network and its variables.

    Raises:
        InputError: another kind of network; a stage would lose blocks; the norm or the
            activation is another than the default; or the block cannot be the identity
            and learn from there: with a convolution, a gate or BatchNorm on the way of
            x, or with a ReLU after a branch of zeros.
    """
    if not isinstance(model, resnet.ResNet):
        raise InputError(f"deepen takes a ResNet, not a {type(model).__name__}.")
    deeper = model.copy(stage_sizes=stage_sizes)
    old, new = model.stage_sizes, deeper.stage_sizes
    if len(old) != len(new) or any(a > b for a, b in zip(old, new, strict=False)):
        raise InputError(
            f"stage_sizes must have {len(old)} entries, none below {old}, not {new}."
        )
    block = model.block_class
    if model.norm is not BatchNorm or model.activation is not nn.relu:
        raise InputError("deepen needs this library's BatchNorm and ReLU.")
    if (block not in _LAST_LAYER and model.has_shortcuts) or model.shortcut == "C":
        raise InputError(
            f"A block of {block.__name__} with shortcut {model.shortcut!r} cannot be "
            "the identity and learn."
        )
    as_identity = _identity_layer
    if model.has_shortcuts:
        as_identity = partial(_identity_block, _LAST_LAYER[block])
    deeper = deeper.copy(stochastic_depth=_kept(model.stochastic_depth, old, new))
    image = jnp.zeros((1, 32, 32, 3), jnp.float32)
    fresh = unstack(jax.jit(lambda: deeper.init({"params": key}, image, train=False))())
    grown = unstack(variables)
    for stage, (before, size) in enumerate(zip(old, new, strict=True), start=1):
        name = f"stage{stage}"
        for collection, tree in grown.items():
            mine = dict(fresh[collection][name])
            for i in range(1, before + 1):
                mine[block_name(i, size)] = tree[name][block_name(i, before)]
            for i in range(before + 1, size + 1):
                added = block_name(i, size)
                mine[added] = as_identity(collection, mine[added])
            tree[name] = mine
    return deeper, stack(grown, deeper)


def _kept(
    settings: StochasticDepth | None, old: Sequence[int], new: Sequence[int]
) -> StochasticDepth | None:
    """Return settings that give every block of `old` stages its p_l in `new` ones."""
    if settings is None or old == new:
        return settings
    if settings.schedule == "uniform" and settings.num_open is None:
        return settings
    probs, schedule = survival_probs(settings, sum(old)).tolist(), []
    for before, size in zip(old, new, strict=True):
        mine, probs = probs[:before], probs[before:]
        schedule += mine + mine[-1:] * (size - before)
    return dataclasses.replace(settings, schedule=tuple(schedule), num_open=None)


def _identity_block(last_layers, collection, tree):
    if collection != "params":
        return tree
    last = next(layer for layer in last_layers if layer in tree)
    return {**tree, last: jax.tree.map(jnp.zeros_like, tree[last])}


def _identity_layer(collection, tree):
    if collection != "params":
        # The variance that BatchNorm's epsilon makes 1.
        return {"bn": {**tree["bn"], "var": tree["bn"]["var"] - BatchNorm.epsilon}}
    kernel = tree["conv"]["kernel"]
    center = kernel.shape[0] // 2
    identity = (
        jnp.zeros_like(kernel)
        .at[center, center]
        .set(jnp.eye(kernel.shape[-1], dtype=kernel.dtype))
    )
    return {**tree, "conv": {**tree["conv"], "kernel": identity}}
