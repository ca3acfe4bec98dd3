# SPDX-License-Identifier: Apache-2.0
"""How a residual branch begins: four ways to make a new block close to its shortcut.

- "zero_gamma": the last BatchNorm of the branch starts with gamma = 0 (Goyal et al.
  2017, section 5.1).
- "skip_init": a learned scalar, at first 0, multiplies the branch (De and Smith 2020).
  It needs no BatchNorm: `norm=Identity, conv_bias=True` is the paper's network.
- "re_zero": the same scalar (Bachlechner et al. 2020, equation 1). The paper varies
  nothing else; it proposes the scalar for networks with and without normalisation.
- "fixup" (Zhang et al. 2019, section 3), in place of BatchNorm. The last convolution of
  every branch and the classifier start at 0; the m - 1 other convolutions of a branch
  are initialised as usual, times L^(-1 / (2m - 2)), where L is the number of blocks; a
  scalar bias precedes every convolution but the stem's, every activation and the
  classifier, and a scalar multiplies every branch. A scalar is "scale" or "bias" of the
  layer that would be the BatchNorm. The authors' code also adds the bias before a
  branch's first convolution on a shortcut that changes the shape; here a shortcut with
  a convolution has its own, as in the paper's rule, and shortcut A has none.

The authors train Fixup's scalars at a tenth of the learning rate, which is a matter of
the recipe; `bias_rate` of the configs applies it to the biases.

Every residual family has these as its field `branch_init`. All begin with "skip_init"
and "re_zero", except weighted residuals, whose own weight is 0 at first: of a product
of two zeros neither has a gradient. "zero_gamma" needs a branch that ends with
BatchNorm, which those of pre-activation units (wide ResNets, Swapout) and of
Inception-ResNet do not. "fixup" needs `norm=Identity` and a branch that is a chain of
layers, which an Inception module is not. The first BatchNorm of a PyramidNet's unit,
which precedes a convolution, is left out with "fixup", because the bias of that
convolution has its place.
"""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rn_jax.errors import InputError, must_be
from rn_jax.models.layers import ModuleDef
from rn_jax.models.network import Network
from rn_jax.models.normalization import Identity

BRANCH_INITS = ("zero_gamma", "skip_init", "re_zero", "fixup")


class ResidualNetwork(Network, kw_only=True):
    """A network of residual branches, which can begin in several ways.

    Attributes:
        branch_init: how residual branches begin: "zero_gamma", "skip_init", "re_zero"
            or "fixup"; see `rn_jax.models.starts`. None: as in the block's paper.

    Raises:
        InputError: `branch_init` does not suit the block or the norm.
    """

    branch_init: str | None = None

    @nn.nowrap
    def check_start(self, block: Any) -> None:
        """Check that blocks of this class can begin as the network asks.

        Raises:
            InputError: see `check_branch_init`.
        """
        if self.branch_init is not None:
            check_branch_init(self.branch_init, block, self.norm)

    @nn.nowrap
    def begin(self, block: ModuleDef) -> ModuleDef:
        """Return a partial of a block, with its `conv` and `norm`, as it begins."""
        if self.branch_init is None:
            return block
        return begin(self.branch_init, block, self.num_blocks)

    @nn.nowrap
    def outside(self, norm: ModuleDef) -> ModuleDef:
        """Return what stands outside of blocks for the norm that `layers` returns."""
        return ScalarBias if self.branch_init == "fixup" else norm

    def classify(self, x: jax.Array, **fields: Any) -> jax.Array:
        """Return the logits of features f[B, C]; see `Network.classify`."""
        if self.branch_init == "fixup":
            x = ScalarBias(name="head_bias")(x)
            fields["kernel_init"] = nn.initializers.zeros
        return super().classify(x, **fields)


class ScalarBias(nn.Module):
    """x + b, or a x + b, with one number each for all channels (Fixup).

    Attributes:
        multiplied: whether there is a, initialised at 1. b is initialised at 0.
    """

    multiplied: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return a x + b, with the shape of x."""
        if self.multiplied:
            scale = self.param("scale", nn.initializers.ones, (), jnp.float32)
            x = scale.astype(x.dtype) * x
        bias = self.param("bias", nn.initializers.zeros, (), jnp.float32)
        return x + bias.astype(x.dtype)


def check_branch_init(kind: str, block: Any, norm: Any) -> None:
    """Check that blocks can begin in this way.

    Args:
        kind: "zero_gamma", "skip_init", "re_zero" or "fixup".
        block: class of the blocks.
        norm: the network's class of the normalisation.

    Raises:
        InputError: `kind` is unknown, the blocks have no shortcut or begin closed by
            themselves, their branch does not end as `kind` needs, or the normalisation
            is not what it needs.
    """
    if kind not in BRANCH_INITS:
        raise must_be("branch_init", f"one of {', '.join(BRANCH_INITS)}, or None", kind)
    name = block.__name__
    if not block.has_shortcut:
        raise InputError(
            f"branch_init needs a residual branch, which {name} does not have."
        )
    if block.begins_closed:
        raise InputError(
            f"{name} takes no branch_init: a weight of its own is 0 at first, and "
            "neither of two zeros that multiply each other has a gradient."
        )
    if kind == "zero_gamma":
        if block.branch_ends != "norm":
            raise InputError(
                'branch_init="zero_gamma" needs a residual branch that ends with '
                f'BatchNorm, unlike that of {name}: use "skip_init".'
            )
        if "scale_init" not in inspect.signature(norm).parameters:
            raise InputError(
                'branch_init="zero_gamma" needs a norm with a gamma, such as '
                'BatchNorm: without one, use "skip_init" or "fixup".'
            )
    if kind == "fixup":
        if norm is not Identity:
            raise InputError(
                'branch_init="fixup" replaces BatchNorm: it needs '
                "norm=rn_jax.models.normalization.Identity."
            )
        if block.branch_ends is None:
            raise InputError(
                'branch_init="fixup" needs a residual branch that is a chain of layers '
                "and ends with a convolution or BatchNorm, unlike that of "
                f'{name}: use "skip_init".'
            )


def begin(kind: str, block: ModuleDef, num_blocks: int) -> ModuleDef:
    """Return a partial of a block that is initialised in this way.

    Args:
        kind: as in `check_branch_init`.
        block: partial of a block with its fields `conv` and `norm`.
        num_blocks: L, the number of blocks of the network.
    """
    if kind in ("skip_init", "re_zero"):
        return partial(block, scalar=0.0)
    facts: Any = block(features=1, stride=1, parent=None)
    depth, ends_in_norm = facts.branch_depth, facts.branch_ends == "norm"
    leading = facts.leading_norms
    last_norm = leading + depth if ends_in_norm else None
    if kind == "zero_gamma":
        return partial(block, norm=partial(_zero_gamma, facts.norm, last_norm))
    conv = partial(_fixup_conv, facts.conv, depth, num_blocks)
    norm = partial(_fixup_norm, leading, last_norm)
    return partial(block, conv=conv, norm=norm, scalar=None if ends_in_norm else 1.0)


def _zero_gamma(norm, last, *, name, **fields):
    if _number(name, "bn") == last:
        fields["scale_init"] = nn.initializers.zeros
    return norm(name=name, **fields)


def _fixup_norm(leading, last, *, name):
    """Return the scalars in place of a branch's BatchNorm.

    That of a shortcut has none, nor has one that only precedes a convolution.
    """
    number = _number(name, "bn")
    if name == "bn" or (number and number <= leading):
        return Identity(name=name)
    return ScalarBias(multiplied=number == last, name=name)


def _fixup_conv(conv, depth, num_blocks, *args, name, **fields):
    number = _number(name, "conv")
    if number == depth:
        fields["kernel_init"] = nn.initializers.zeros
    elif number:
        usual = inspect.signature(conv).parameters["kernel_init"].default
        fields["kernel_init"] = scaled(usual, num_blocks ** (-1 / (2 * depth - 2)))
    elif name != "conv":  # neither of the branch nor of the shortcut
        return conv(*args, name=name, **fields)

    def biased(x):
        x = ScalarBias(name=f"{name}_bias")(x)
        return conv(*args, name=name, **fields)(x)

    return biased


def scaled(init: Callable, factor: float) -> Callable:
    """Return an initialiser whose values are those of `init` times `factor`."""

    def init_scaled(key, shape, dtype=jnp.float32):
        return factor * init(key, shape, dtype)

    return init_scaled


def _number(name, kind):
    """Return the i of "bn<i>" or "branch01_bn<i>"; None for other names."""
    found = re.fullmatch(rf"(?:branch\d+_)?{kind}(\d+)", name)
    return int(found[1]) if found else None
