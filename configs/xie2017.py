# SPDX-License-Identifier: Apache-2.0
"""Xie et al. 2017: ResNeXt on CIFAR and on ImageNet.

On CIFAR, errors are means of 10 runs; the other networks are points in figure 7,
without numbers (a secondary source names these points). On ImageNet the recipe is that
of fb.resnet.torch, and errors are of one crop of 224 pixels. The paper divides the rate
three times; its code does so every 30 of 100 epochs. ResNet-200 in table 4 has 21.7 and
5.8 % of errors, top-1 and top-5, which are those of fb.resnet.torch's pre-activation
network (21.66 and 5.79 %), so that is the network here; the paper does not say it.

    python -m experiments.run --config=configs/resnext29_8x64d.py[:DATASET]
"""

from configs import Row, default, torch_imagenet


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        normalization="channel",
        epochs=300,
        lr_drops=(150, 225),
        lr_drops_unit="epochs",
        weight_decay=5e-4,
        **default.TORCH_SGD,
        paper="Xie et al. 2017",
    )


def _imagenet(where, error, **fields):
    fields |= {"epochs": 100, "lr_drops": (30, 60, 90)}
    return torch_imagenet.row(where, error, paper="Xie et al. 2017", **fields)


ROWS = {
    "resnext29_1x64d": Row("figure 7"),
    "resnext29_2x64d": Row("figure 7"),
    "resnext29_4x64d": Row("figure 7"),
    "resnext29_1x128d": Row("figure 7"),
    "resnext29_1x192d": Row("figure 7"),
    "resnext29_8x64d": Row("table 7", {"cifar10": 3.65, "cifar100": 17.77}),
    "resnext29_16x64d": Row("table 7", {"cifar10": 3.58, "cifar100": 17.31}),
    "resnext50_1x64d": _imagenet("table 3", 23.9),
    "resnext50_2x40d": _imagenet("table 3", 23.0),
    "resnext50_4x24d": _imagenet("table 3", 22.6),
    "resnext50_8x14d": _imagenet("table 3", 22.3),
    "resnext50_32x4d": _imagenet("table 3", 22.2),
    "resnext101_1x64d": _imagenet("table 3 and table 4", 22.0, model="resnet101"),
    "resnext101_32x4d": _imagenet("table 3 and table 4", 21.2),
    "resnet200_xie2017": _imagenet("table 4", 21.7, model="preact_resnet200"),
    "resnext101_1x100d": _imagenet("table 4", 21.3),
    "resnext101_2x64d": _imagenet("table 4", 20.7),
    "resnext101_64x4d": _imagenet("table 4", 20.4),
}
