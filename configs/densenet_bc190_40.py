# SPDX-License-Identifier: Apache-2.0
"""DenseNet-BC, 190 layers, growth rate 40 (Huang et al. 2017, table 2).

Published: 3.46 % test error on CIFAR-10 and 17.18 % on CIFAR-100, augmented.
The paper has no result without augmentation.

    python -m experiments.run --config=configs/densenet_bc190_40.py[:DATASET]
"""

from configs import densenet40_12


def get_config(dataset="cifar10"):
    config = densenet40_12.get_config(dataset)
    config.model = "densenet_bc190_40"
    config.published_error_percent = {"cifar10": 3.46, "cifar100": 17.18}
    return config
