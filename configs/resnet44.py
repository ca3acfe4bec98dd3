# SPDX-License-Identifier: Apache-2.0
"""ResNet-44 on CIFAR-10 (He et al. 2015, table 6).

Published: 7.17 % test error.

    python -m experiments.run --config=configs/resnet44.py
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "resnet44"
    config.published_error_percent = {"cifar10": 7.17}
    return default.with_dataset(config)
