# SPDX-License-Identifier: Apache-2.0
"""Identity Mappings in Deep Residual Networks (He et al. 2016): its ablations.

A unit is x_{l+1} = f(h(x_l) + F(x_l)), equations 1 and 2. Figure 2 and table 1 change
the shortcut h of the original unit; figure 4 and table 2 change the positions of
normalisation and activation; in two rows of table 3, F has one layer. Wide residual
networks (Zagoruyko and Komodakis 2016) are full pre-activation units with more channels
and, optionally, dropout.
"""

import flax.linen as nn
import jax

from rn_jax.errors import InputError
from rn_jax.models.gating import exclusive_sum
from rn_jax.models.layers import PROJECTIONS
from rn_jax.models.resnet import BasicBlock, Block, bottleneck_strides

# --- Table 1: the function on the shortcut --------------------------------------------


class ConstantScaling(BasicBlock):
    """shortcut_scale * x + branch_scale * F(x) (figure 2b).

    A gate b multiplies the branch: shortcut_scale * x + b branch_scale * F(x).

    Attributes:
        shortcut_scale: factor of the shortcut.
        branch_scale: factor of the residual branch.
    """

    shortcut_scale: float = 0.5
    branch_scale: float = 0.5

    def shortcut(self, x, *, train: bool):
        """Return shortcut_scale * x."""
        return self.shortcut_scale * super().shortcut(x, train=train)

    def residual(self, x, *, train: bool):
        """Return branch_scale * F(x)."""
        return self.branch_scale * super().residual(x, train=train)


class ExclusiveGating(BasicBlock):
    """(1 - g(x)) * x + g(x) * F(x), g(x) = sigmoid(W_g x + b_g) (figure 2c).

    A gate b multiplies g(x): (1 - b g(x)) * x + b g(x) * F(x), so a closed unit is the
    identity and computes neither F nor g.

    Attributes:
        gate_bias: initial b_g; the paper searched from 0 to -10.
    """

    gate_bias: float = -6.0

    def sum(self, x, gate, on_path, *, train: bool):  # type: ignore[override]
        """Return (1 - b g(x)) * x + b g(x) * F(x): see `exclusive_sum`."""

        def gates_and_residual(block, x):
            g = _gate(block, x)
            return g, g, block.branch(x, train=train)

        shortcut = self.shortcut(x, train=train)
        return exclusive_sum(self, x, shortcut, gates_and_residual, gate, on_path)


class ShortcutOnlyGating(BasicBlock):
    """(1 - g(x)) * x + F(x) (figure 2d).

    A gate b multiplies F alone: a closed unit is (1 - g(x)) * x.

    Attributes:
        gate_bias: initial b_g; 0 and -6 in the paper.
    """

    gate_bias: float = -6.0

    def shortcut(self, x, *, train: bool):
        """Return (1 - g(x)) * x."""
        return (1 - _gate(self, x)) * super().shortcut(x, train=train)


class DropoutShortcut(BasicBlock):
    """dropout(x) + F(x) (figure 2f); a gate multiplies F alone.

    Attributes:
        dropout: share of the shortcut's output that is zeroed in training.
    """

    dropout: float = 0.5

    def shortcut(self, x, *, train: bool):
        """Return dropout(x)."""
        x = super().shortcut(x, train=train)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class DropoutBranch(BasicBlock):
    """x + F(x) with dropout between the two convolutions of F, after their ReLU.

    It is where wide residual networks have it; He et al. 2016 have no such unit.

    Attributes:
        dropout: rate of dropout.
    """

    dropout: float = 0.25

    def residual(self, x, *, train: bool):
        """Return F(x)."""
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = self.activation(self.norm(name="bn1")(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = self.conv(self.features, 3, name="conv2")(y)
        return self.norm(name="bn2")(y)


def _gate(block, x: jax.Array) -> jax.Array:
    """Return g(x), a 1x1 convolution with the block's stride; we use no BatchNorm."""
    bias = nn.initializers.constant(block.gate_bias)
    fields = {"use_bias": True, "bias_init": bias, "name": "gate"}
    return nn.sigmoid(block.conv(block.features, 1, block.stride, **fields)(x))


# --- Table 3: shortcuts around one layer ----------------------------------------------


class SingleLayer(Block):
    """relu(x + BN(W x)), the original unit of table 3's "1layer skip" (one 3x3 layer).

    The pre-activation unit of that row is `FullPreactivation` with `single`.
    """

    branch_ends = "norm"
    branch_depth = 1

    def residual(self, x, *, train: bool):
        """Return F(x)."""
        return self.norm(name="bn1")(
            self.conv(self.features, 3, self.stride, name="conv1")(x)
        )


# --- Table 2: the positions of the activations ----------------------------------------


class OrderedUnit(Block):
    """A unit of weight layers in another order than the original's; f is the identity.

    Attributes:
        bottleneck: whether to use weight layers 1x1, 3x3 and 1x1 instead of two 3x3.
        single: whether to use one 3x3 weight layer (table 3, "1layer skip").
        stride_on: layer with a bottleneck's stride: "1x1" (the authors' code) or "3x3"
            (fb.resnet.torch).
    """

    bottleneck: bool = False
    single: bool = False
    stride_on: str = "1x1"

    @property
    def branch_depth(self) -> int:
        """Number of weight layers of F."""
        if self.single:
            return 1
        return 3 if self.bottleneck else 2

    def after(self, y, *, train: bool):
        """Return the sum itself."""
        return y

    @property
    def closed_is_identity(self) -> bool:
        """Whether h is the identity, as f is here."""
        return self._is_as_in(OrderedUnit) and self.shortcut_kind != "C"


def weight_layers(block: nn.Module) -> list[nn.Module]:
    """Return the convolutions of a unit's branch, in order.

    Raises:
        InputError: `stride_on` is unknown, or the unit is to have one and three layers.
    """
    if block.bottleneck and block.single:
        raise InputError("A unit is a bottleneck or single, not both.")
    if block.single:
        shapes = [(block.features, 3, block.stride)]
    elif not block.bottleneck:
        shapes = [(block.features, 3, block.stride), (block.features, 3, 1)]
    else:
        first, second = bottleneck_strides(block)
        width = block.features // 4
        shapes = [(width, 1, first), (width, 3, second), (block.features, 1, 1)]
    return [block.conv(*shape, name=f"conv{i}") for i, shape in enumerate(shapes, 1)]


class BatchNormAfterAddition(OrderedUnit):
    """F is W-BN-ReLU-W, and BN-ReLU follow the sum (figure 4b).

    The BatchNorm after the sum also runs in a closed unit.
    """

    branch_ends = "weight"

    def residual(self, x, *, train: bool):
        """Return F(x)."""
        *weights, last = weight_layers(self)
        for i, weight in enumerate(weights, 1):
            x = self.activation(self.norm(name=f"bn{i}")(weight(x)))
        return last(x)

    def after(self, y, *, train: bool):
        """Return the normalised and activated sum."""
        return self.activation(self.norm(name="bn_after")(y))


class ReluBeforeAddition(OrderedUnit):
    """F is W-BN-ReLU-W-BN-ReLU, and nothing follows the sum (figure 4c)."""

    def residual(self, x, *, train: bool):
        """Return F(x)."""
        for i, weight in enumerate(weight_layers(self), 1):
            x = self.activation(self.norm(name=f"bn{i}")(weight(x)))
        return x


class ReluOnlyPreactivation(OrderedUnit):
    """F is ReLU-W-BN-ReLU-W-BN, and nothing follows the sum (figure 4d).

    The input of the shortcut is not activated, even if it has a convolution.

    Attributes:
        activated: whether the input is already activated, as that of the first unit.
    """

    activated: bool = False

    preactivation = "relu"
    branch_ends = "norm"

    def residual(self, x, *, train: bool):
        """Return F(x)."""
        for i, weight in enumerate(weight_layers(self), 1):
            x = x if i == 1 and self.activated else self.activation(x)
            x = self.norm(name=f"bn{i}")(weight(x))
        return x


class FullPreactivation(OrderedUnit):
    """F is BN-ReLU-W-BN-ReLU-W, and nothing follows the sum (figure 4e).

    If the shortcut has a convolution, one BN-ReLU precedes both paths, as in the
    authors' code; for the network's first unit it belongs to the stem.

    Attributes:
        activated: whether the input is already activated, as that of the first unit.
        dropout: rate of dropout before the last weight layer (wide residual networks).
    """

    activated: bool = False
    dropout: float = 0.0

    preactivation = "bn_relu"
    branch_ends = "weight"

    def before(self, x, *, train: bool):
        """Return the input, activated if both paths share the activation."""
        if self._both_activated(x) and not self.activated:
            return self._activate(x, 1)
        return x

    @property
    def closed_is_identity(self) -> bool:
        """Whether h is the identity, for which `before` is one too."""
        return self._is_as_in(FullPreactivation) and self.shortcut_kind != "C"

    def residual(self, x, *, train: bool):
        """Return F(x)."""
        weights = weight_layers(self)
        done = self.activated or self._both_activated(x)
        for i, weight in enumerate(weights, 1):
            x = x if i == 1 and done else self._activate(x, i)
            if self.dropout and i == len(weights):
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = weight(x)
        return x

    def _activate(self, x, i):
        return self.activation(self.norm(name=f"bn{i}")(x))

    def _both_activated(self, x):
        same_shape = self.stride == 1 and x.shape[-1] == self.features
        return self.shortcut_kind in PROJECTIONS and not same_shape
