# SPDX-License-Identifier: Apache-2.0
"""Wide ResNet, 40 layers 4 times as wide (Zagoruyko and Komodakis 2016).

Published: this project's sources have no number for it.

    python -m experiments.run --config=configs/wrn40_4.py[:DATASET]
"""

from configs import wrn16_8


def get_config(dataset="cifar10"):
    config = wrn16_8.get_config(dataset)
    config.model = "wrn40_4"
    return config
