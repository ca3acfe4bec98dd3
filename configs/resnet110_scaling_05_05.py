# SPDX-License-Identifier: Apache-2.0
"""ResNet-110, shortcut and branch times 0.5 (He et al. 2016, table 1).

Published: 12.35 % test error on CIFAR-10, median of 5 runs.

    python -m experiments.run --config=configs/resnet110_scaling_05_05.py
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet110_scaling_05_05"
    config.published_error_percent = {"cifar10": 12.35}
    return config
