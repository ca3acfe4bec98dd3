# SPDX-License-Identifier: Apache-2.0
"""How strongly the layers of a DenseNet use earlier features (Huang et al. 2017)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rn_jax.models.densenet import DenseNet


def mean_absolute_weights(
    params: Mapping[str, Any], model: DenseNet
) -> dict[str, np.ndarray]:
    """Return the mean absolute weight between the layers of each block (figure 5).

    The mean is over all weights with which layer l reads the maps of layer s: over its
    filters, their pixels and the maps. A layer's first convolution reads maps, the 1x1
    convolution of a bottleneck included. BatchNorm's scales are left out, as in the
    paper.

    Args:
        params: parameters of the network, with a classifier.
        model: the network.

    Returns:
        {"stage1": f64[n + 1, n + 1], ...} for blocks of n layers. Row s = 0, ..., n is
        the source: the block's input, then its layers. Column l = 1, ..., n + 1 is the
        reader: the layers, then the transition or the classifier. NaN where s >= l.
    """
    found = {}
    for stage, size in enumerate(model.stage_sizes, start=1):
        tree = params[f"stage{stage}"]
        readers = [tree[name]["conv1"]["kernel"] for name in sorted(tree)]
        last = stage == len(model.stage_sizes)
        after = params["head"] if last else params[f"transition{stage}"]["conv"]
        weights = np.full((size + 1, size + 1), np.nan)
        for column, kernel in enumerate([*readers, after["kernel"]]):
            by_map = np.abs(np.asarray(kernel, np.float64)).mean(axis=-1)
            by_map = by_map.reshape(-1, by_map.shape[-1]).mean(axis=0)  # (maps,)
            own = len(by_map) - column * model.growth_rate  # of the block's input
            weights[0, column] = by_map[:own].mean()
            new = by_map[own:].reshape(column, model.growth_rate)
            weights[1 : column + 1, column] = new.mean(axis=1)
        found[f"stage{stage}"] = weights
    return found
