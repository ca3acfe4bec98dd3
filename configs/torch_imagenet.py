# SPDX-License-Identifier: Apache-2.0
"""The recipe of fb.resnet.torch on ImageNet, without a network.

The Torch codes of pre-activation ResNets, ResNeXt, DenseNet and stochastic depth are
based on it.
"""

from configs import default, imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.epochs = 90
    config.steps = None
    config.lr_schedule = "piecewise"
    config.lr_drops = (30, 60)
    config.lr_drops_unit = "epochs"
    config.protocol = "full"
    config.normalization = "imagenet"
    config.train_crop = "area"
    if dataset == "imagenet2012":
        config.color_jitter = 0.4
    config.batch_norm_at_test = "moving"
    config.momentum_form = "torch"
    config.nesterov = True
    config.weight_decay_on = "all"
    return default.with_dataset(config)
