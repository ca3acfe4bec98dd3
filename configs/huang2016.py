# SPDX-License-Identifier: Apache-2.0
"""Huang et al. 2016: stochastic depth, and constant depth by the same recipe.

The recipe is that of resnet110.py; errors are those at the best validation error. On
SVHN, 400 images of "train" and 200 of "extra" are held out per class, and evaluated
every 200 iterations. On ImageNet, errors are those after 120 epochs; after 90 they are
23.38 % with stochastic depth and 23.06 % without. The last 30 have a rate of 0.0001.

    python -m experiments.run --config=configs/resnet152_svhn_sd.py
"""

from configs import Row, default, resnet110, resnet110_sd, torch_imagenet


def get_config(dataset="cifar10"):
    config = resnet110.get_config(dataset)
    config.model = None
    config.model_kwargs = {}
    config.published_error_percent = {}
    return config


def on_svhn(dataset="svhn_cropped"):
    config = get_config(dataset)
    config.augment = False
    config.epochs = 50
    config.lr_drops = (30, 35)
    config.lr_drops_unit = "epochs"
    config.eval_every_steps = 200
    return default.with_dataset(config)


def on_imagenet(dataset="imagenet2012"):
    config = torch_imagenet.get_config(dataset)
    config.epochs = 120
    config.batch_size = 128
    config.lr_drops = (30, 60, 90)
    config.paper = "Huang et al. 2016"
    return default.with_dataset(config)


_DEPTH = {"stochastic_depth": {"last_survival": 0.5}}
_RAW = {"model": "resnet110", "augment": False}
_1202 = {
    "model": "resnet1202",
    "model_kwargs": {"shortcut": "A_pooled"},
    "epochs": 300,
    "warmup": 10,
    "warmup_unit": "epochs",
}

# resnet110 and resnet110_sd, also in table 1, have files of their own.
ROWS = {
    "resnet110_not_augmented": Row(
        "table 1", {"cifar10": 13.63, "cifar100": 44.74}, _RAW, resnet110.get_config
    ),
    "resnet110_sd_not_augmented": Row(
        "table 1", {"cifar10": 11.66, "cifar100": 37.8}, _RAW, resnet110_sd.get_config
    ),
    "resnet152_svhn": Row("table 1", {"svhn_cropped": 1.80}, recipe=on_svhn),
    "resnet152_svhn_sd": Row(
        "table 1",
        {"svhn_cropped": 1.75},
        {"model": "resnet152_svhn", **_DEPTH},
        recipe=on_svhn,
    ),
    "resnet152_imagenet": Row(
        "section 4", {"imagenet2012": 21.78}, {"model": "resnet152"}, recipe=on_imagenet
    ),
    "resnet152_imagenet_sd": Row(
        "section 4",
        {"imagenet2012": 21.98},
        {"model": "resnet152", **_DEPTH},
        recipe=on_imagenet,
    ),
    "resnet1202_constant": Row("section 4", {"cifar10": 6.67}, _1202),
    "resnet1202_sd": Row("section 4", {"cifar10": 4.91}, {**_1202, **_DEPTH}),
}
