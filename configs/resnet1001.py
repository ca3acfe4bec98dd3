# SPDX-License-Identifier: Apache-2.0
"""ResNet-1001, original units (He et al. 2016, table 3).

Published: 7.61 % test error on CIFAR-10 and 27.82 % on CIFAR-100, medians of 5 runs.

    python -m experiments.run --config=configs/resnet1001.py[:DATASET]
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet1001"
    config.published_error_percent = {"cifar10": 7.61, "cifar100": 27.82}
    return config
