# SPDX-License-Identifier: Apache-2.0
"""Wide ResNet-28-10 with dropout 0.3 (Zagoruyko and Komodakis 2016).

Published: this project's sources have no number for it.

    python -m experiments.run --config=configs/wrn28_10_dropout.py[:DATASET]
"""

from configs import wrn28_10


def get_config(dataset="cifar10"):
    config = wrn28_10.get_config(dataset)
    config.model_kwargs = {"block_kwargs": {"dropout": 0.3}}
    return config
