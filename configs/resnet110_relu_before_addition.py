# SPDX-License-Identifier: Apache-2.0
"""ResNet-110, ReLU before the addition (He et al. 2016, table 2).

Published: 7.84 % test error on CIFAR-10, median of 5 runs.

    python -m experiments.run --config=configs/resnet110_relu_before_addition.py
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet110_relu_before_addition"
    config.published_error_percent = {"cifar10": 7.84}
    return config
