# SPDX-License-Identifier: Apache-2.0
"""DenseNet-BC, 250 layers, growth rate 24 (Huang et al. 2017, table 2).

Published: 3.62 % test error on CIFAR-10 and 17.60 % on CIFAR-100, augmented;
1.74 % on SVHN.
Without augmentation, where dropout comes in, 5.19 % and 19.64 %:
add --config.augment=False and --config.model_kwargs="{'dropout': 0.2}".

    python -m experiments.run --config=configs/densenet_bc250_24.py[:DATASET]
"""

from configs import densenet40_12


def get_config(dataset="cifar10"):
    config = densenet40_12.get_config(dataset)
    config.model = "densenet_bc250_24"
    config.published_error_percent = {
        "cifar10": 3.62,
        "cifar100": 17.6,
        "svhn_cropped": 1.74,
    }
    return config
