# SPDX-License-Identifier: Apache-2.0
"""Deeper networks with the function of a shallow one (He et al. 2015, section 1)."""

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

# The layer whose variables are set to 0 so that a branch is zero: its last BatchNorm,
# or its last convolution if no BatchNorm follows.
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
    """Return a deeper network with the same logits at test: added blocks do nothing.

    This is the paper's argument that there is a deeper network that is no worse. Blocks
    are added at the end of each stage. An added residual block is the identity because
    its last layer, and so its branch, is zero; its other layers are initialised as
    usual, so that it can learn. An added plain layer has an identity kernel, and a
    BatchNorm whose statistics are 0 and 1; in training it uses those of the batch.

    With stochastic depth, every block keeps its survival probability p_l, and an added
    block has that of the block before it. Most schedules depend on the number of
    blocks, so the deeper network lists its probabilities in `StochasticDepth.schedule`.
    This includes `num_open`: the deeper network draws each block independently with
    p_l = num_open / L, where L is the number of blocks of `model`, because no fixed
    count would preserve that probability. "uniform" is unchanged.

    Args:
        model: `ResNet` of basic, bottleneck, ResNeXt, plain or pre-activation blocks,
            with identity shortcuts where the shape is unchanged (not "C").
        variables: its "params" and "batch_stats", stacked or not.
        stage_sizes: number of blocks per stage of the deeper network.
        key: PRNG key of the added layers.

    Returns:
        (deeper network, its variables).

    Raises:
        InputError: the network is of another kind; a stage would lose blocks; the norm
            or the activation is not the default; branches have learned scalars; or the
            block cannot both be the identity and learn: it has a convolution, a gate or
            BatchNorm on the shortcut, or a ReLU after a branch of zeros.
    """
    if why := cannot_deepen(model):
        raise InputError(why)
    deeper = model.copy(stage_sizes=stage_sizes)
    old, new = model.stage_sizes, deeper.stage_sizes
    if len(old) != len(new) or any(a > b for a, b in zip(old, new, strict=False)):
        raise InputError(
            f"stage_sizes must have {len(old)} entries, none below {old}, not {new}."
        )
    block = model.block_class
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


def cannot_deepen(model: nn.Module) -> str | None:
    """Return why `deepen` has no deeper network for this one, or None."""
    if not isinstance(model, resnet.ResNet):
        return f"deepen takes a ResNet, not a {type(model).__name__}."
    block = model.block_class
    if model.norm is not BatchNorm or model.activation is not nn.relu:
        return "deepen needs the default norm and activation, BatchNorm and ReLU."
    if (block not in _LAST_LAYER and model.has_shortcuts) or model.shortcut == "C":
        return (
            f"{block.__name__} with shortcut {model.shortcut!r} cannot both be the "
            "identity and learn."
        )
    if model.branch_init not in (None, "zero_gamma"):
        return (
            "deepen takes branches without scalars, not "
            f'branch_init="{model.branch_init}".'
        )
    return None


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
        # With BatchNorm's epsilon the variance is 1.
        return {"bn": {**tree["bn"], "var": tree["bn"]["var"] - BatchNorm.epsilon}}
    kernel = tree["conv"]["kernel"]
    center = kernel.shape[0] // 2
    eye = jnp.eye(kernel.shape[-1], dtype=kernel.dtype)
    identity = jnp.zeros_like(kernel).at[center, center].set(eye)
    return {**tree, "conv": {**tree["conv"], "kernel": identity}}
