# SPDX-License-Identifier: Apache-2.0
"""ResNet-1202 on CIFAR-10 (He et al. 2015, table 6).

Published: 7.93 % test error.

    python -m experiments.run --config=configs/resnet1202.py
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "resnet1202"
    config.warmup_until_error = 80.0  # as for ResNet-110
    config.published_error_percent = {"cifar10": 7.93}
    return default.with_dataset(config)
