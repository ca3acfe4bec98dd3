# SPDX-License-Identifier: Apache-2.0
"""ResNet-1202 with stochastic depth on CIFAR-10 (Huang et al. 2016, section 4).

Published: 4.91 % test error, against 6.67 % at constant depth.

    python -m experiments.run --config=configs/resnet1202_sd.py
"""

from configs import default, resnet110_sd


def get_config(dataset="cifar10"):
    config = resnet110_sd.get_config(dataset)
    config.model = "resnet1202"
    config.epochs = 300
    config.warmup = 10
    config.warmup_unit = "epochs"
    config.published_error_percent = {"cifar10": 4.91}
    return default.with_dataset(config)
