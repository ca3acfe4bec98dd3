# SPDX-License-Identifier: Apache-2.0
"""ResNet-164, original units (He et al. 2016, tables 2 and 3).

Published: 5.93 % test error on CIFAR-10 and 25.16 % on CIFAR-100, medians of 5 runs.

    python -m experiments.run --config=configs/resnet164.py[:DATASET]
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet164"
    config.published_error_percent = {"cifar10": 5.93, "cifar100": 25.16}
    return config
