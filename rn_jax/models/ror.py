# SPDX-License-Identifier: Apache-2.0
"""Residual networks of residual networks (Zhang et al. 2016, arXiv 1608.02908).

Further levels of shortcuts span parts that are already residual. L blocks form
three groups of L/3, the stages. With m levels of shortcuts,

- m = 1 is a residual network: final-level shortcuts, those of the blocks;
- m = 2 has the root-level shortcut over all blocks as well;
- m = 3, RoR-3, also has middle-level shortcuts over each stage.

The last block of a stage ends with f(g(x_s) + h(x_l) + F(x_l)), where x_s is the input
of the stage; that of the last stage also adds g(x_1), where x_1 is the stem's output.
In pre-activation and wide networks f is the identity.

From the paper itself, we have read only the abstract and the definition of the levels.
The rest comes from secondary sources: reviews and four implementations. In most of
them, the activation follows the sum of all levels. Where they differ or are silent, we
made these choices:

- Shortcuts of blocks are A on CIFAR, and g is B, a default ("ABB") of one
  implementation. B is that of He et al. 2015, a projection where the shape changes and
  else the identity; the others project in the first stage too, which is
  `level_shortcut="C"`. In pre-activation networks g has no BatchNorm. Wide networks
  keep their own projections in blocks.
- Numbers of blocks and strides are those of the original network. Two implementations
  have a block fewer per stage, and max-pooling between stages. With ours,
  RoR-3-WRN58-4 has 13.6 million parameters; a review has 13.3.
- In pre-activation networks x_1 comes after the stem's BatchNorm and ReLU, as the input
  of the first unit does, and other x_s before those of their stage.
- Stochastic depth drops the residual branches of blocks; level shortcuts always stay.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jax import lax

from rn_jax.errors import InputError, must_be
from rn_jax.models.layers import ModuleDef, Shortcut
from rn_jax.models.network import Count
from rn_jax.models.resnet import BasicBlock, ResNet


class LateBasicBlock(BasicBlock):
    """A basic block whose f is left to what follows: x_l = f(y_{l-1}) comes first.

    A chain of them is one of basic blocks, except that a stage ends with the sum y, to
    which shortcuts of other levels can be added before f.

    Attributes:
        activated: whether the input is already activated, as that of the first block.
    """

    activated: bool = False

    preactivation = "relu"

    def before(self, x, *, train: bool):
        """Return f(x), the input of both paths."""
        return x if self.activated else self.activation(x)

    def after(self, y, *, train: bool):
        """Return the sum itself."""
        return y


class RoR(ResNet):
    """A residual network with shortcuts of m levels.

    A gate closes the residual branch of a block; level shortcuts have no gates. With
    `paths`, the gradient passes no level shortcut: a path runs through all blocks.

    Attributes:
        levels: m, at most 3.
        level_shortcut: kind of the root-level and middle-level shortcuts g; see
            `Shortcut`.
        block: `LateBasicBlock`, `FullPreactivation` or another block that begins with
            its activation.

    Raises:
        InputError: `levels` is above 3, or the block ends with its activation.
    """

    levels: Count = 3
    level_shortcut: str = "B"
    block: ModuleDef = LateBasicBlock

    def __post_init__(self):
        super().__post_init__()
        if self.levels > 3:
            raise must_be("levels", "1, 2 or 3", self.levels)
        if self._preactivation is None:
            raise InputError(
                "Level shortcuts are added before the activation, with which "
                f"{self.block_class.__name__} ends: use LateBasicBlock of "
                "rn_jax.models.ror, or a pre-activation unit."
            )

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """As of a ResNet; a shortcut belongs to the stage after which it is added."""
        parts = dict(super().parts)
        for stage in range(1, len(self.stage_sizes) + 1):
            parts[f"stage{stage}"] += tuple(self._added_after(stage))
        return parts

    def _added_after(self, stage):
        """Return the shortcuts that end with a stage: {name: stage of their start}."""
        found = {f"stage{stage}_shortcut": stage} if self.levels == 3 else {}
        if self.levels > 1 and stage == len(self.stage_sizes):
            found["root_shortcut"] = 1
        return found

    def after_stage(self, y, inputs, paths, **layers: Any):
        """Return y + g(x_s), and + g(x_1) after the last stage; see the class."""
        for name, start in self._added_after(len(inputs)).items():
            y = y + self._level(name, inputs, start, paths, **layers)
        return y

    def _level(self, name, inputs, start, paths, **layers):
        """Return g of the input of the stage `start`, with the shape of this stage."""
        x, stage = inputs[start - 1], len(inputs)
        if self._preactivation == "relu" and not (start == 1 and self._first_activated):
            x = self.activation(x)  # f of the stage before, as the blocks have it
        stride = math.prod(self._strides[start - 1 : stage])
        kind, features = self.level_shortcut, self.features[stage - 1]
        g: nn.Module = Shortcut(kind, features, stride, **layers, name=name)
        return g(x) if paths is None else lax.stop_gradient(g(x))
