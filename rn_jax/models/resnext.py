# SPDX-License-Identifier: Apache-2.0
"""ResNeXt (Xie et al. 2017) in its three equivalent forms (figure 3).

The block of form (c), one grouped convolution, is `Bottleneck` with groups: the one to
train with. Forms (a) and (b) lay the branches out. `convert_form` maps weights between
the three, which compute the same function.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rn_jax.errors import InputError, unknown_name
from rn_jax.models.resnet import Block, Bottleneck, ResNet, group_width


class _Branches(Block):
    """Fields of forms (a) and (b): those of `Bottleneck`, the stride on the 3x3."""

    groups: int = 32
    base_width: int = 4


def branch(block: nn.Module, x: jax.Array, i: int) -> jax.Array:
    """Branch i from 1 up to its last 1x1 convolution: 1x1 and 3x3 of d channels."""
    d, name = group_width(block.features, block.base_width), branch_name(i)
    y = block.conv(d, 1, name=f"{name}_conv1")(x)
    y = block.activation(block.norm(name=f"{name}_bn1")(y))
    y = block.conv(d, 3, block.stride, name=f"{name}_conv2")(y)
    return block.activation(block.norm(name=f"{name}_bn2")(y))


def branch_name(i: int) -> str:
    """Prefix of the variables of branch i, from 1."""
    return f"branch{i:02d}"


class SplitTransformMerge(_Branches):
    """F(x) = sum of C branches 1x1(d)-3x3(d)-1x1 (figure 3a, equation 2).

    The last BatchNorm comes after the sum.
    """

    def residual(self, x, *, train: bool):
        """Return F(x)."""
        branches = [
            self.conv(self.features, 1, name=f"{branch_name(i)}_conv3")(
                branch(self, x, i)
            )
            for i in range(1, self.groups + 1)
        ]
        return self.norm(name="bn3")(sum(branches))


class EarlyConcatenation(_Branches):
    """C branches 1x1(d)-3x3(d), concatenated, then one 1x1 (figure 3b)."""

    def residual(self, x, *, train: bool):
        """Return F(x)."""
        branches = [branch(self, x, i) for i in range(1, self.groups + 1)]
        y = self.conv(self.features, 1, name="conv3")(
            jnp.concatenate(branches, axis=-1)
        )
        return self.norm(name="bn3")(y)


FORMS = {"a": SplitTransformMerge, "b": EarlyConcatenation, "c": Bottleneck}


def build_resnext(
    *, cardinality: int, base_width: int, form: str = "c", **fields: Any
) -> ResNet:
    """A ResNeXt.

    Args:
        cardinality: C, branches of a block.
        base_width: d, channels of a branch in the first stage of ImageNet's networks.
        form: "a", "b" or "c" of figure 3.
        **fields: those of `ResNet`.

    Raises:
        InputError: unknown form.
    """
    if form not in FORMS:
        raise unknown_name("form", form, FORMS)
    kwargs = {"groups": cardinality, "base_width": base_width}
    kwargs |= fields.pop("block_kwargs", {})
    return ResNet(block=FORMS[form], block_kwargs=kwargs, **fields)


def convert_form(
    variables: Mapping[str, Any], model: nn.Module, source: str, target: str
) -> dict[str, Any]:
    """Variables of one form of a ResNeXt as those of another, computing the same.

    W1 of (c) is the branches' W1 side by side by output channel, W2 is its groups, W3
    is stacked by input channel (section 3.3); BatchNorms are split like their channels.

    Args:
        variables: collections of a network in form `source`, as its `init` gives them.
        model: the network in any form, for its number of groups.
        source, target: "a", "b" or "c".

    Raises:
        InputError: unknown form; biases on the convolutions.
    """
    if model.conv_bias:
        raise InputError("convert_form maps convolutions without biases only.")
    for form in (source, target):
        if form not in FORMS:
            raise unknown_name("form", form, FORMS)
    groups = model.block_kwargs["groups"]

    def convert(tree):
        if not isinstance(tree, Mapping):
            return tree
        tree = {key: convert(value) for key, value in tree.items()}
        if "bn3" not in tree:
            return tree  # not a block
        return _split(_merge(tree, source, groups), target, groups)

    return {name: convert(tree) for name, tree in variables.items()}


# Layers that the forms lay out differently, and the axis along which the
# branches lie in form (c), from the end because scans stack blocks on axis 0.
_BY_BRANCH = {"conv1": -1, "bn1": -1, "conv2": -1, "bn2": -1, "conv3": -2}


def _layers(form):
    layers = ["conv1", "bn1", "conv2", "bn2"] + (["conv3"] if form == "a" else [])
    return layers if form != "c" else []


def _merge(tree, form, groups):
    """A block's variables in form (c)."""
    tree = dict(tree)
    for layer in _layers(form):
        names = [f"{branch_name(i)}_{layer}" for i in range(1, groups + 1)]
        if names[0] in tree:  # statistics have no convolutions
            parts, axis = [tree.pop(name) for name in names], _BY_BRANCH[layer]
            tree[layer] = jax.tree.map(
                lambda *leaves, axis=axis: jnp.concatenate(leaves, axis), *parts
            )
    return tree


def _split(tree, form, groups):
    """A block's variables in form (c) as those of `form`."""
    tree = dict(tree)
    for layer in _layers(form):
        if layer in tree:
            whole, axis = tree.pop(layer), _BY_BRANCH[layer]
            for i in range(1, groups + 1):
                tree[f"{branch_name(i)}_{layer}"] = jax.tree.map(
                    lambda leaf, i=i, axis=axis: jnp.split(leaf, groups, axis)[i - 1],
                    whole,
                )
    return tree
