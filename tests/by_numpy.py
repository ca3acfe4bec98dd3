# SPDX-License-Identifier: Apache-2.0
"""Layers by NumPy, for tests of whole blocks and networks."""

import numpy as np


def np_conv(x, params, stride=1, *, padded=True):
    kernel = params["kernel"]
    h, w = kernel.shape[:2]
    if padded:
        x = np.pad(x, ((0, 0), (h // 2, h // 2), (w // 2, w // 2), (0, 0)))
    rows = range(0, x.shape[1] - h + 1, stride)
    columns = range(0, x.shape[2] - w + 1, stride)
    y = np.zeros((len(x), len(rows), len(columns), kernel.shape[3]))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            window = x[:, top : top + h, left : left + w]
            y[:, i, j] = np.tensordot(window, kernel, 3)
    return y + params.get("bias", 0)


def np_norm(x, params, stats):
    y = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return y * params["scale"] + params["bias"]


def np_full_preactivation(x, variables):
    """F of a unit of two layers, BN-ReLU-W-BN-ReLU-W (He et al. 2016, figure 4e)."""
    p, stats = variables["params"], variables["batch_stats"]
    for i in (1, 2):
        x = np.maximum(np_norm(x, p[f"bn{i}"], stats[f"bn{i}"]), 0)
        x = np_conv(x, p[f"conv{i}"])
    return x
