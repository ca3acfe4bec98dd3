# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-Excitation Networks (Hu et al. 2017; 1709.01507)."""

import flax.linen as nn

from rn_jax.models.preact import FullPreactivation
from rn_jax.models.resnet import BasicBlock, Block, Bottleneck


class _Excited(Block):
    """A block whose branch is weighted channel by channel: s * F(x) (figure 3).

    s = sigmoid(W_2 relu(W_1 z)), where z is the mean of F(x) over the pixels (equations
    2 to 4). Both layers have biases, as in the authors' Caffe models. A gate multiplies
    s * F(x); a closed block computes neither.

    Attributes:
        reduction: r; W_1 has `features` / r rows, at least one.
    """

    reduction: int = 16

    def residual(self, x, *, train: bool):
        """Return s * F(x)."""
        y = super().residual(x, train=train)
        z = y.mean(axis=(1, 2), keepdims=True)  # (B, 1, 1, features)
        few = max(1, self.features // self.reduction)
        z = nn.relu(self.conv(few, 1, use_bias=True, name="squeeze")(z))
        return (
            nn.sigmoid(self.conv(self.features, 1, use_bias=True, name="excite")(z)) * y
        )


class ExcitedBasicBlock(_Excited, BasicBlock):
    """s * F(x) of a basic block."""


class ExcitedBottleneck(_Excited, Bottleneck):
    """s * F(x) of a bottleneck (figure 3), or, with `groups`, of ResNeXt's block."""


class ExcitedPreactivation(_Excited, FullPreactivation):
    """s * F(x) of a full pre-activation unit."""
