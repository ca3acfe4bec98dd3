# SPDX-License-Identifier: Apache-2.0
"""The original ResNet-110 as He et al. 2016 train it, tables 1 to 3.

Published: 6.61 % test error on CIFAR-10 (median of 5 runs).

    python -m experiments.run --config=configs/resnet110_he2016.py
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet110"
    config.published_error_percent = {"cifar10": 6.61}
    return config
