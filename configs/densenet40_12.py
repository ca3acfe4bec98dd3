# SPDX-License-Identifier: Apache-2.0
"""DenseNet, 40 layers, growth rate 12 (Huang et al. 2017, table 2).

Published: 5.24 % test error on CIFAR-10 and 24.42 % on CIFAR-100, augmented;
1.79 % on SVHN.
Without augmentation, where dropout comes in, 7.00 % and 27.55 %:
add --config.augment=False and --config.model_kwargs="{'dropout': 0.2}".

    python -m experiments.run --config=configs/densenet40_12.py[:DATASET]
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "densenet40_12"
    config.normalization = "channel"
    config.epochs = 300
    config.steps = None
    config.batch_size = 64
    config.lr_drops = (0.5, 0.75)
    config.lr_drops_unit = "fraction"
    config.momentum_form = "torch"
    config.nesterov = True
    config.weight_decay_on = "all"
    if dataset == "svhn_cropped":  # train and extra, less 6,000 to choose the epoch by
        config.epochs = 40
        config.protocol = "45k5k"
        config.normalization = "unit"
        config.augment = False
        config.model_kwargs.dropout = 0.2
    config.paper = "Huang et al. 2017"
    config.published_error_percent = {
        "cifar10": 5.24,
        "cifar100": 24.42,
        "svhn_cropped": 1.79,
    }
    return default.with_dataset(config)
