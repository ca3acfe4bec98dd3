# SPDX-License-Identifier: Apache-2.0
"""Wide ResNet, 16 layers 8 times as wide (Zagoruyko and Komodakis 2016).

Published: this project's sources have no number for it.

    python -m experiments.run --config=configs/wrn16_8.py[:DATASET]
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "wrn16_8"
    config.normalization = "channel"
    config.epochs = 200
    config.steps = None
    config.lr_drops = (60, 120, 160)
    config.lr_drops_unit = "epochs"
    config.lr_factor = 0.2
    config.momentum_form = "torch"
    config.nesterov = True
    config.weight_decay = 5e-4
    config.weight_decay_on = "all"
    config.paper = "Zagoruyko and Komodakis 2016"
    return default.with_dataset(config)
