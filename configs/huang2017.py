# SPDX-License-Identifier: Apache-2.0
"""Huang et al. 2017: DenseNets on CIFAR and SVHN (table 2) and on ImageNet.

Errors on CIFAR are those with augmentation. Without it the networks have dropout; the
paper has no such result for the DenseNet-BC of 190 layers. On ImageNet the recipe is
that of fb.resnet.torch, and errors are of one crop of 224 pixels.

    python -m experiments.run --config=configs/densenet40_12.py[:DATASET]
"""

from configs import Row, default, torch_imagenet


def get_config(dataset="cifar10"):
    config = default.recipe(
        dataset,
        normalization="channel",
        epochs=300,
        batch_size=64,
        lr_drops=(0.5, 0.75),
        lr_drops_unit="fraction",
        **default.TORCH_SGD,
        paper="Huang et al. 2017",
    )
    if dataset == "svhn_cropped":  # 6,000 of train and extra are held out
        config.epochs = 40
        config.protocol = "45k5k"
        config.normalization = "unit"
        config.augment = False
        config.model_kwargs.dropout = 0.2
    return config


def _cifar(*errors, **fields):
    columns = ("cifar10", "cifar100", "svhn_cropped")
    return Row("table 2", dict(zip(columns, errors, strict=False)), fields)


def _not_augmented(model, *errors):
    dropout = {"dropout": 0.2}
    return _cifar(*errors, model=model, augment=False, model_kwargs=dropout)


def _imagenet(where, error):
    return torch_imagenet.row(where, error, paper="Huang et al. 2017")


ROWS = {
    "densenet40_12": _cifar(5.24, 24.42, 1.79),
    "densenet100_12": _cifar(4.10, 20.20, 1.67),
    "densenet100_24": _cifar(3.74, 19.25, 1.59),
    "densenet_bc100_12": _cifar(4.51, 22.27, 1.76),
    "densenet_bc250_24": _cifar(3.62, 17.60, 1.74),
    "densenet_bc190_40": _cifar(3.46, 17.18),
    "densenet40_12_not_augmented": _not_augmented("densenet40_12", 7.00, 27.55),
    "densenet100_12_not_augmented": _not_augmented("densenet100_12", 5.77, 23.79),
    "densenet100_24_not_augmented": _not_augmented("densenet100_24", 5.83, 23.42),
    "densenet_bc100_12_not_augmented": _not_augmented("densenet_bc100_12", 5.92, 24.15),
    "densenet_bc250_24_not_augmented": _not_augmented("densenet_bc250_24", 5.19, 19.64),
    "densenet_bc40_36": Row("the authors' code", {"cifar10": 4.58}),
    "densenet_bc40_48": Row("the authors' code", {"cifar10": 3.99}),
    "densenet_bc40_60": Row("the authors' code", {"cifar10": 4.01}),
    "densenet121": _imagenet("table 3", 25.02),
    "densenet169": _imagenet("table 3", 23.80),
    "densenet201": _imagenet("table 3", 22.58),
    "densenet264": _imagenet("table 3", 22.15),
    "densenet161": _imagenet("the authors' code", 22.2),
}
