# SPDX-License-Identifier: Apache-2.0
"""Fully connected highway network of 50 layers (Srivastava et al. 2015, 1505.00387).

Published: training curves, no number. The paper searched the rate, its decay, the
momentum and the gates' bias at random; these are plain choices within its ranges.

    python -m experiments.run --config=configs/highway50_mnist.py[:DATASET]
"""

from configs import default


def get_config(dataset="mnist"):
    config = default.get_config(dataset)
    config.model = "highway50_mnist"
    config.normalization = "channel"
    config.epochs = 400
    config.steps = None
    config.batch_size = 100
    config.learning_rate = 0.01
    config.lr_drops = (0.5, 0.75)
    config.lr_drops_unit = "fraction"
    config.augment = False
    config.weight_decay = 0.0
    config.paper = "Srivastava et al. 2015"
    return default.with_dataset(config)
