# SPDX-License-Identifier: Apache-2.0
"""Norms of the weights of residual branches (He et al. 2015, section 3.2)."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rn_jax.models.network import Network
from rn_jax.models.trunk import unstack

KINDS = ("kernel", "scale")


def weight_norms(params: Mapping[str, Any], model: Network) -> dict[str, np.ndarray]:
    """Return the Euclidean norms of the weights of each branch, {kind: f64[L]}.

    "kernel" is the norm of all kernels of a block together, "scale" that of all scales:
    BatchNorm's, or Fixup's. Both are without the shortcut's, and 0 if there are none.

    Args:
        params: parameters of the network, in either layout.
        model: the network.
    """
    trees = unstack({"params": params})["params"]
    squares = {kind: np.zeros(model.num_blocks) for kind in KINDS}
    for block in model.blocks:
        tree = trees
        for part in block.name.split("/"):
            tree = tree[part]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            kind = path[-1].key
            if path[0].key != "shortcut" and kind in KINDS:
                square = np.square(np.asarray(leaf, np.float64)).sum()
                squares[kind][block.index] += square
    return {kind: np.sqrt(square) for kind, square in squares.items()}
