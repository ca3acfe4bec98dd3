# SPDX-License-Identifier: Apache-2.0
"""ResNeXt (Xie et al. 2017) in its three equivalent forms (figure 3).

Form (c), one grouped convolution, is `Bottleneck` with groups, and the fastest. Forms
(a) and (b) have a module for each branch. All three compute the same function, and
`convert_form` converts their weights.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rn_jax.errors import InputError, unknown_name
from rn_jax.models.resnet import Block, Bottleneck, ResNet, group_width


class _Branches(Block):
    """Fields of forms (a) and (b), as in `Bottleneck`; the stride is on the 3x3."""

    groups: int = 32
    base_width: int = 4

    branch_ends = "norm"
    branch_depth = 3


def branch(block: nn.Module, x: jax.Array, i: int) -> jax.Array:
    """Return branch i, from 1, before its last 1x1 convolution: f[B, H', W', d]."""
    d, name = group_width(block.features, block.base_width), branch_name(i)
    y = block.conv(d, 1, name=f"{name}_conv1")(x)
    y = block.activation(block.norm(name=f"{name}_bn1")(y))
    y = block.conv(d, 3, block.stride, name=f"{name}_conv2")(y)
    return block.activation(block.norm(name=f"{name}_bn2")(y))


def branch_name(i: int) -> str:
    """Return the prefix of the variables of branch i, from 1."""
    return f"branch{i:02d}"


class SplitTransformMerge(_Branches):
    """F(x) = sum of C branches 1x1(d)-3x3(d)-1x1 (figure 3a, equation 2).

    The last BatchNorm follows the sum.
    """

    def residual(self, x, *, train: bool):
        """Return F(x)."""
        branches = []
        for i in range(1, self.groups + 1):
            last = self.conv(self.features, 1, name=f"{branch_name(i)}_conv3")
            branches.append(last(branch(self, x, i)))
        return self.norm(name="bn3")(sum(branches))


class EarlyConcatenation(_Branches):
    """C branches 1x1(d)-3x3(d), concatenated, then one 1x1 (figure 3b)."""

    def residual(self, x, *, train: bool):
        """Return F(x)."""
        branches = [branch(self, x, i) for i in range(1, self.groups + 1)]
        y = jnp.concatenate(branches, axis=-1)
        y = self.conv(self.features, 1, name="conv3")(y)
        return self.norm(name="bn3")(y)


FORMS = {"a": SplitTransformMerge, "b": EarlyConcatenation, "c": Bottleneck}


def build_resnext(
    *, cardinality: int, base_width: int, form: str = "c", **fields: Any
) -> ResNet:
    """Return a ResNeXt.

    Args:
        cardinality: C, number of branches of a block.
        base_width: d, channels of a branch in the first stage of ImageNet's networks.
        form: "a", "b" or "c" of figure 3.
        **fields: fields of `ResNet`.

    Raises:
        InputError: the form is unknown.
    """
    if form not in FORMS:
        raise unknown_name("form", form, FORMS)
    kwargs = {"groups": cardinality, "base_width": base_width}
    kwargs |= fields.pop("block_kwargs", {})
    return ResNet(block=FORMS[form], block_kwargs=kwargs, **fields)


def convert_form(
    variables: Mapping[str, Any], model: nn.Module, source: str, target: str
) -> dict[str, Any]:
    """Return the variables of a ResNeXt's form as those of an equivalent form.

    The branches' W1 are concatenated by output channel in (c), W2 are its groups, W3
    are concatenated by input channel (section 3.3); BatchNorms follow their channels.

    Args:
        variables: collections of a network in form `source`, as returned by `init`.
        model: network in any of the forms.
        source, target: "a", "b" or "c".

    Raises:
        InputError: a form is unknown, or the convolutions have biases.
    """
    if model.conv_bias:
        raise InputError("convert_form needs convolutions without biases.")
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


# Layers that differ from form (c), and the axis of the branches there, counted from the
# end because scans stack blocks on axis 0.
_B = {"conv1": -1, "bn1": -1, "conv2": -1, "bn2": -1}
_BY_BRANCH: dict[str, dict[str, int]] = {"a": {**_B, "conv3": -2}, "b": _B, "c": {}}


def _merge(tree, form, groups):
    """Turn the variables of a block into those of form (c)."""
    for layer, axis in _BY_BRANCH[form].items():
        names = [f"{branch_name(i)}_{layer}" for i in range(1, groups + 1)]
        if names[0] in tree:  # there are no statistics of convolutions
            parts = [tree.pop(name) for name in names]
            tree[layer] = jax.tree.map(
                lambda *leaves, axis=axis: jnp.concatenate(leaves, axis), *parts
            )
    return tree


def _split(tree, form, groups):
    """Turn the variables of a block in form (c) into those of `form`."""
    for layer, axis in _BY_BRANCH[form].items():
        if layer in tree:
            whole = tree.pop(layer)
            for i in range(1, groups + 1):
                tree[f"{branch_name(i)}_{layer}"] = jax.tree.map(
                    lambda leaf, i=i, axis=axis: jnp.split(leaf, groups, axis)[i - 1],
                    whole,
                )
    return tree
