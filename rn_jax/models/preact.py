# SPDX-License-Identifier: Apache-2.0
"""Identity Mappings in Deep Residual Networks (He et al. 2016): both ablations.

A unit is x_{l+1} = f(h(x_l) + F(x_l)), equations 1 and 2. Figure 2 and table 1 change
the shortcut h on the original unit; figure 4 and table 2 change where normalisation and
activation stand. Wide residual networks (Zagoruyko and Komodakis 2016) are full
pre-activation units with more channels and, as an option, dropout.
"""

import flax.linen as nn
import jax

from rn_jax.models.gating import exclusive_sum, gated_sum
from rn_jax.models.layers import PROJECTIONS
from rn_jax.models.resnet import Block, basic_branch, bottleneck_strides, identity

# --- Table 1: what is on the shortcut -------------------------------------------------


class ConstantScaling(Block):
    """shortcut_scale * x + branch_scale * F(x) (figure 2b).

    A gate multiplies the branch: shortcut_scale * x + b branch_scale * F(x).
    """

    shortcut_scale: float = 0.5
    branch_scale: float = 0.5

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`

        def residual(block, x):
            return block.branch_scale * basic_branch(block, x)

        shortcut = self.shortcut_scale * identity(self, x)
        return self.activation(gated_sum(self, x, shortcut, residual, gate, on_path))


class ExclusiveGating(Block):
    """(1 - g(x)) * x + g(x) * F(x), g(x) = sigmoid(W_g x + b_g) (figure 2c).

    A gate b multiplies g(x): (1 - b g(x)) * x + b g(x) * F(x), so a closed unit is the
    identity and computes neither F nor g.

    Attributes:
        gate_bias: b_g at the start; the paper searched from 0 to -10.
    """

    gate_bias: float = -6.0

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`

        def gate_and_residual(block, x):
            return _gate(block, x), basic_branch(block, x)

        shortcut = identity(self, x)
        return self.activation(
            exclusive_sum(self, x, shortcut, gate_and_residual, gate, on_path)
        )


class ShortcutOnlyGating(Block):
    """(1 - g(x)) * x + F(x) (figure 2d).

    A gate b multiplies F alone: a closed unit is (1 - g(x)) * x.

    Attributes:
        gate_bias: b_g at the start; 0 and -6 in the paper.
    """

    gate_bias: float = -6.0

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`
        shortcut = (1 - _gate(self, x)) * identity(self, x)
        return self.activation(
            gated_sum(self, x, shortcut, basic_branch, gate, on_path)
        )


class DropoutShortcut(Block):
    """dropout(x) + F(x) (figure 2f); a gate multiplies F alone.

    Attributes:
        dropout: share of the shortcut's output that is zeroed in training.
    """

    dropout: float = 0.5

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        shortcut = identity(self, x)
        shortcut = nn.Dropout(self.dropout, deterministic=not train)(shortcut)
        return self.activation(
            gated_sum(self, x, shortcut, basic_branch, gate, on_path)
        )


def _gate(block, x: jax.Array) -> jax.Array:
    """g(x), a 1x1 convolution with the block's stride; no BatchNorm (our reading)."""
    conv = block.conv(
        block.features,
        1,
        block.stride,
        use_bias=True,
        bias_init=nn.initializers.constant(block.gate_bias),
        name="gate",
    )
    return nn.sigmoid(conv(x))


# --- Table 2: where the activations are -----------------------------------------------


class _OrderedUnit(Block):
    """Further fields of the units of table 2.

    Attributes:
        bottleneck: three weight layers, 1x1, 3x3 and 1x1, instead of two of 3x3.
        stride_on: "1x1" (the authors' code) or "3x3" (fb.resnet.torch) of a bottleneck.
    """

    bottleneck: bool = False
    stride_on: str = "1x1"


def weight_layers(block: nn.Module) -> list[nn.Module]:
    """The convolutions of a unit's branch, in order.

    Raises:
        InputError: unknown `stride_on`.
    """
    shapes: tuple[tuple[int, int, int], ...]
    if not block.bottleneck:
        shapes = ((block.features, 3, block.stride), (block.features, 3, 1))
    else:
        first, second = bottleneck_strides(block)
        width = block.features // 4
        shapes = ((width, 1, first), (width, 3, second), (block.features, 1, 1))
    return [block.conv(*shape, name=f"conv{i}") for i, shape in enumerate(shapes, 1)]


class BatchNormAfterAddition(_OrderedUnit):
    """F is W-BN-ReLU-W, and BN-ReLU follow the sum (figure 4b).

    The BatchNorm after the sum also runs in a closed unit, whose sum is its shortcut.
    """

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`

        def residual(block, x):
            *weights, last = weight_layers(block)
            for i, weight in enumerate(weights, 1):
                x = block.activation(block.norm(name=f"bn{i}")(weight(x)))
            return last(x)

        x = gated_sum(self, x, identity(self, x), residual, gate, on_path)
        return self.activation(self.norm(name="bn_after")(x))


class ReluBeforeAddition(_OrderedUnit):
    """F is W-BN-ReLU-W-BN-ReLU, and nothing follows the sum (figure 4c)."""

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`

        def residual(block, x):
            for i, weight in enumerate(weight_layers(block), 1):
                x = block.activation(block.norm(name=f"bn{i}")(weight(x)))
            return x

        return gated_sum(self, x, identity(self, x), residual, gate, on_path)


class ReluOnlyPreactivation(_OrderedUnit):
    """F is ReLU-W-BN-ReLU-W-BN, and nothing follows the sum (figure 4d).

    The shortcut takes the input as it is, also where a convolution is on it.

    Attributes:
        activated: the input is activated already, as that of the first unit is.
    """

    activated: bool = False

    preactivation = "relu"

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        del train  # already in `norm`

        def residual(block, x):
            for i, weight in enumerate(weight_layers(block), 1):
                x = x if i == 1 and block.activated else block.activation(x)
                x = block.norm(name=f"bn{i}")(weight(x))
            return x

        return gated_sum(self, x, identity(self, x), residual, gate, on_path)


class FullPreactivation(_OrderedUnit):
    """F is BN-ReLU-W-BN-ReLU-W, and nothing follows the sum (figure 4e).

    Where a convolution is on the shortcut, one BN-ReLU feeds both paths, as in the
    authors' code; the network's first unit is fed so by the stem.

    Attributes:
        activated: the input is activated already, as that of the first unit is.
        dropout: share of the activations before the last weight layer that is zeroed in
            training (wide residual networks).
    """

    activated: bool = False
    dropout: float = 0.0

    preactivation = "bn_relu"

    @nn.compact
    def __call__(self, x, gate=None, on_path=None, *, train: bool):
        """f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""

        def activate(block, x, i):
            return block.activation(block.norm(name=f"bn{i}")(x))

        same_shape = self.stride == 1 and x.shape[-1] == self.features
        shared = self.shortcut in PROJECTIONS and not same_shape
        if shared and not self.activated:
            x = activate(self, x, 1)

        def residual(block, x):
            *weights, last = weight_layers(block)
            for i, weight in enumerate(weights, 1):
                done = i == 1 and (shared or block.activated)
                x = weight(x if done else activate(block, x, i))
            x = activate(block, x, len(weights) + 1)
            if block.dropout:
                x = nn.Dropout(block.dropout, deterministic=not train)(x)
            return last(x)

        return gated_sum(self, x, identity(self, x), residual, gate, on_path)
