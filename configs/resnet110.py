# SPDX-License-Identifier: Apache-2.0
"""ResNet-110 of constant depth by the recipe of Huang et al. 2016, table 1.

The twin of resnet110_sd.py. The published errors are those at the best validation
epoch. configs/resnet110_he2015.py, a row of he2015.py, has the recipe of He et al.
2015. In the authors' code convolutions also have biases, which have no effect before a
BatchNorm; --config.model_kwargs.conv_bias=True adds them (1,732,010 parameters).

    python -m experiments.run --config=configs/resnet110.py[:DATASET]
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "resnet110"
    config.model_kwargs = {"shortcut": "A_pooled"}
    config.protocol = "45k5k"
    config.epochs = 500
    config.steps = None
    config.lr_drops = (0.5, 0.75)
    config.lr_drops_unit = "fraction"
    config.momentum_form = "torch"
    config.nesterov = True
    config.weight_decay_on = "all"
    config.paper = "Huang et al. 2016"
    config.published_error_percent = {"cifar10": 6.41, "cifar100": 27.22}
    return default.with_dataset(config)
