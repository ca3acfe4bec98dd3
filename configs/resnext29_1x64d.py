# SPDX-License-Identifier: Apache-2.0
"""ResNet-29 with bottlenecks, the baseline of ResNeXt-29 (Xie et al. 2017, figure 7).

Published: a point of a figure, no number.

    python -m experiments.run --config=configs/resnext29_1x64d.py[:DATASET]
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "resnext29_1x64d"
    config.normalization = "channel"
    config.epochs = 300
    config.steps = None
    config.lr_drops = (150, 225)
    config.lr_drops_unit = "epochs"
    config.momentum_form = "torch"
    config.nesterov = True
    config.weight_decay = 5e-4
    config.weight_decay_on = "all"
    config.paper = "Xie et al. 2017"
    return default.with_dataset(config)
