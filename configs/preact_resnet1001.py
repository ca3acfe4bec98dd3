# SPDX-License-Identifier: Apache-2.0
"""ResNet-1001, full pre-activation (He et al. 2016, table 3).

Published: 4.92 % test error on CIFAR-10 and 22.71 % on CIFAR-100, medians of 5 runs.

    python -m experiments.run --config=configs/preact_resnet1001.py[:DATASET]
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "preact_resnet1001"
    config.published_error_percent = {"cifar10": 4.92, "cifar100": 22.71}
    return config
