# SPDX-License-Identifier: Apache-2.0
"""ResNet-110, exclusive gating, b_g = -6 (He et al. 2016, table 1).

Published: 8.70 % test error on CIFAR-10, median of 5 runs.

    python -m experiments.run --config=configs/resnet110_exclusive_gating_6.py
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet110_exclusive_gating_6"
    config.published_error_percent = {"cifar10": 8.70}
    return config
