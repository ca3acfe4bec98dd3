# SPDX-License-Identifier: Apache-2.0
"""ResNeXt-29, 16x64d (Xie et al. 2017, table 7).

Published: 3.58 % test error on CIFAR-10 and 17.31 % on CIFAR-100, means of 10 runs.

    python -m experiments.run --config=configs/resnext29_16x64d.py[:DATASET]
"""

from configs import resnext29_1x64d


def get_config(dataset="cifar10"):
    config = resnext29_1x64d.get_config(dataset)
    config.model = "resnext29_16x64d"
    config.published_error_percent = {"cifar10": 3.58, "cifar100": 17.31}
    return config
