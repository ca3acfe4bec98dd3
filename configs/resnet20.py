# SPDX-License-Identifier: Apache-2.0
"""ResNet-20 on CIFAR-10 (He et al. 2015, table 6).

Published: 8.75 % test error.

    python -m experiments.run --config=configs/resnet20.py
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "resnet20"
    config.published_error_percent = {"cifar10": 8.75}
    return default.with_dataset(config)
