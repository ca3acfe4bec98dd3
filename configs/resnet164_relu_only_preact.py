# SPDX-License-Identifier: Apache-2.0
"""ResNet-164, ReLU-only pre-activation (He et al. 2016, table 2).

Published: 5.91 % test error on CIFAR-10, median of 5 runs.

    python -m experiments.run --config=configs/resnet164_relu_only_preact.py
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet164_relu_only_preact"
    config.published_error_percent = {"cifar10": 5.91}
    return config
