# SPDX-License-Identifier: Apache-2.0
"""Zagoruyko and Komodakis 2016: wide ResNets on CIFAR.

Their published errors were not available to this project.

    python -m experiments.run --config=configs/wrn28_10.py[:DATASET]
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        normalization="channel",
        epochs=200,
        lr_drops=(60, 120, 160),
        lr_drops_unit="epochs",
        lr_factor=0.2,
        weight_decay=5e-4,
        **default.TORCH_SGD,
        paper="Zagoruyko and Komodakis 2016",
    )


_DROPOUT = {"model": "wrn28_10", "model_kwargs": {"block_kwargs": {"dropout": 0.3}}}

ROWS = {
    "wrn16_8": Row("16 layers, 8 times as wide"),
    "wrn40_4": Row("40 layers, 4 times as wide"),
    "wrn28_10": Row("28 layers, 10 times as wide"),
    "wrn28_10_dropout": Row("the same with dropout 0.3", fields=_DROPOUT),
}
