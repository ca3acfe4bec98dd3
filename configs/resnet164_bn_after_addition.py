# SPDX-License-Identifier: Apache-2.0
"""ResNet-164, BatchNorm after the addition (He et al. 2016, table 2).

Published: 6.50 % test error on CIFAR-10, median of 5 runs.

    python -m experiments.run --config=configs/resnet164_bn_after_addition.py
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet164_bn_after_addition"
    config.published_error_percent = {"cifar10": 6.50}
    return config
