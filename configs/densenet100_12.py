# SPDX-License-Identifier: Apache-2.0
"""DenseNet, 100 layers, growth rate 12 (Huang et al. 2017, table 2).

Published: 4.10 % test error on CIFAR-10 and 20.20 % on CIFAR-100, augmented;
1.67 % on SVHN.
Without augmentation, where dropout comes in, 5.77 % and 23.79 %:
add --config.augment=False and --config.model_kwargs="{'dropout': 0.2}".

    python -m experiments.run --config=configs/densenet100_12.py[:DATASET]
"""

from configs import densenet40_12


def get_config(dataset="cifar10"):
    config = densenet40_12.get_config(dataset)
    config.model = "densenet100_12"
    config.published_error_percent = {
        "cifar10": 4.1,
        "cifar100": 20.2,
        "svhn_cropped": 1.67,
    }
    return config
