# SPDX-License-Identifier: Apache-2.0
"""ResNet-56 on CIFAR-10 (He et al. 2015, table 6).

Published: 6.97 % test error.

    python -m experiments.run --config=configs/resnet56.py
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "resnet56"
    config.published_error_percent = {"cifar10": 6.97}
    return default.with_dataset(config)
