# SPDX-License-Identifier: Apache-2.0
"""DenseNet-BC, 100 layers, growth rate 12 (Huang et al. 2017, table 2).

Published: 4.51 % test error on CIFAR-10 and 22.27 % on CIFAR-100, augmented;
1.76 % on SVHN.
Without augmentation, where dropout comes in, 5.92 % and 24.15 %:
add --config.augment=False and --config.model_kwargs="{'dropout': 0.2}".

    python -m experiments.run --config=configs/densenet_bc100_12.py[:DATASET]
"""

from configs import densenet40_12


def get_config(dataset="cifar10"):
    config = densenet40_12.get_config(dataset)
    config.model = "densenet_bc100_12"
    config.published_error_percent = {
        "cifar10": 4.51,
        "cifar100": 22.27,
        "svhn_cropped": 1.76,
    }
    return config
