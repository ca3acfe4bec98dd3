# SPDX-License-Identifier: Apache-2.0
"""ResNet of 152 layers, 6n + 2, of constant depth on SVHN (Huang et al. 2016, table 1).

Published: 1.80 % test error at the best validation error. Not as in the paper: it
holds out 400 + 200 examples of each class, here a tenth of all, and evaluates every 200
iterations, here every epoch.

    python -m experiments.run --config=configs/resnet152_svhn.py
"""

from configs import default


def get_config(dataset="svhn_cropped"):
    config = default.get_config(dataset)
    config.model = "resnet152_svhn"
    config.augment = False
    config.protocol = "45k5k"
    config.epochs = 50
    config.steps = None
    config.lr_drops = (30, 35)
    config.lr_drops_unit = "epochs"
    config.nesterov = True
    config.weight_decay_on = "all"
    config.paper = "Huang et al. 2016"
    config.published_error_percent = {"svhn_cropped": 1.80}
    return default.with_dataset(config)
