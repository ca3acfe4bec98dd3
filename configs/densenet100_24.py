# SPDX-License-Identifier: Apache-2.0
"""DenseNet, 100 layers, growth rate 24 (Huang et al. 2017, table 2).

Published: 3.74 % test error on CIFAR-10 and 19.25 % on CIFAR-100, augmented;
1.59 % on SVHN.
Without augmentation, where dropout comes in, 5.83 % and 23.42 %:
add --config.augment=False and --config.model_kwargs="{'dropout': 0.2}".

    python -m experiments.run --config=configs/densenet100_24.py[:DATASET]
"""

from configs import densenet40_12


def get_config(dataset="cifar10"):
    config = densenet40_12.get_config(dataset)
    config.model = "densenet100_24"
    config.published_error_percent = {
        "cifar10": 3.74,
        "cifar100": 19.25,
        "svhn_cropped": 1.59,
    }
    return config
