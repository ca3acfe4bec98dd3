# SPDX-License-Identifier: Apache-2.0
"""ResNet-164, full pre-activation (He et al. 2016, tables 2 and 3).

Published: 5.46 % test error on CIFAR-10 and 24.33 % on CIFAR-100, medians of 5 runs.

    python -m experiments.run --config=configs/preact_resnet164.py[:DATASET]
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "preact_resnet164"
    config.published_error_percent = {"cifar10": 5.46, "cifar100": 24.33}
    return config
