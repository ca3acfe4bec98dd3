# SPDX-License-Identifier: Apache-2.0
"""Xie et al. 2017: ResNeXt on CIFAR and on ImageNet.

On CIFAR, errors are means of 10 runs; the baseline with one group is a point in figure
7, without a number. On ImageNet the recipe is that of fb.resnet.torch, and errors are
of one crop of 224 pixels. The paper divides the rate three times; its code does so
every 30 of 100 epochs.

    python -m experiments.run --config=configs/resnext29_8x64d.py[:DATASET]
"""

from configs import Row, default, torch_imagenet


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
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


def on_imagenet(dataset="imagenet2012"):
    config = torch_imagenet.get_config(dataset)
    config.epochs = 100
    config.lr_drops = (30, 60, 90)
    config.paper = "Xie et al. 2017"
    return default.with_dataset(config)


def _imagenet(where, error):
    return Row(where, {"imagenet2012": error}, recipe=on_imagenet)


ROWS = {
    "resnext29_1x64d": Row("figure 7"),
    "resnext29_8x64d": Row("table 7", {"cifar10": 3.65, "cifar100": 17.77}),
    "resnext29_16x64d": Row("table 7", {"cifar10": 3.58, "cifar100": 17.31}),
    "resnext50_1x64d": _imagenet("table 3", 23.9),
    "resnext50_2x40d": _imagenet("table 3", 23.0),
    "resnext50_4x24d": _imagenet("table 3", 22.6),
    "resnext50_8x14d": _imagenet("table 3", 22.3),
    "resnext50_32x4d": _imagenet("table 3", 22.2),
    "resnext101_32x4d": _imagenet("table 3", 21.2),
    "resnext101_2x64d": _imagenet("table 4", 20.7),
    "resnext101_64x4d": _imagenet("table 4", 20.4),
}
