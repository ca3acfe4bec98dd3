# SPDX-License-Identifier: Apache-2.0
"""Huang et al. 2016: stochastic depth, and constant depth by the same recipe.

Errors are those at the best validation error. On SVHN, 400 images of "train" and 200 of
"extra" are held out per class, and evaluated every 200 iterations. On ImageNet, errors
are those after 120 epochs; after 90 they are 23.38 % with stochastic depth and 23.06 %
without. The last 30 have a rate of 0.0001.

Three networks that the paper does not have compare stochastic depth with Dropout. With
p_L = 0.5, 40.25 of 54 blocks are open on average: resnet110_sd_uniform opens each with
that probability, 40.25 / 54, resnet110_dropout keeps each unit between the convolutions
of a block with it, and resnet82 has 40 blocks, as many per stage as are open in
resnet110_sd (16.4, 13.4 and 10.4, rounded so that their sums are right).

    python -m experiments.run --config=configs/resnet152_svhn_sd.py
"""

from configs import Row, default, torch_imagenet


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        protocol="45k5k",
        epochs=500,
        lr_drops=(0.5, 0.75),
        lr_drops_unit="fraction",
        **default.TORCH_SGD,
        paper="Huang et al. 2016",
    )


def on_svhn(dataset="svhn_cropped"):
    return default.recipe(
        dataset,
        get_config,
        augment=False,
        epochs=50,
        lr_drops=(30, 35),
        lr_drops_unit="epochs",
        eval_every_steps=200,
    )


def _imagenet(error, **fields):
    fields |= {"model": "resnet152", "paper": "Huang et al. 2016"}
    fields |= {"epochs": 120, "batch_size": 128, "lr_drops": (30, 60, 90)}
    return torch_imagenet.row("section 4", error, **fields)


_DEPTH = {"stochastic_depth": {"last_survival": 0.5}}
_POOLED = {"model_kwargs": {"shortcut": "A_pooled"}}
_RAW = {"model": "resnet110", **_POOLED, "augment": False}
_SVHN_SD = {"model": "resnet152_svhn", **_DEPTH}
_1202 = {"model": "resnet1202", **_POOLED, "epochs": 300}
_1202 |= {"warmup": 10, "warmup_unit": "epochs"}

_OPEN = 40.25 / 54  # the mean of the survival probabilities 1 - l / (2 * 54)
_UNIFORM = {"stochastic_depth": {"last_survival": _OPEN, "schedule": "uniform"}}
_DROPOUT = {"block_kwargs": {"dropout": 1 - _OPEN}}
_SHORTER = {"shortcut": "A_pooled", "stage_sizes": (16, 14, 10)}

# resnet110 and resnet110_sd, also in table 1, have files of their own.
ROWS = {
    "resnet110_not_augmented": Row(
        "table 1", {"cifar10": 13.63, "cifar100": 44.74}, _RAW
    ),
    "resnet110_sd_not_augmented": Row(
        "table 1", {"cifar10": 11.66, "cifar100": 37.8}, {**_RAW, **_DEPTH}
    ),
    "resnet110_sd_uniform": Row(
        "beside Dropout", fields={"model": "resnet110", **_POOLED, **_UNIFORM}
    ),
    "resnet110_dropout": Row("Dropout", fields={"model_kwargs": _DROPOUT}),
    "resnet82": Row(
        "the expected depth", fields={"model": "resnet110", "model_kwargs": _SHORTER}
    ),
    "resnet152_svhn": Row("table 1", {"svhn_cropped": 1.80}, recipe=on_svhn),
    "resnet152_svhn_sd": Row("table 1", {"svhn_cropped": 1.75}, _SVHN_SD, on_svhn),
    "resnet152_imagenet": _imagenet(21.78),
    "resnet152_imagenet_sd": _imagenet(21.98, **_DEPTH),
    "resnet1202_constant": Row("section 4", {"cifar10": 6.67}, _1202),
    "resnet1202_sd": Row("section 4", {"cifar10": 4.91}, {**_1202, **_DEPTH}),
}
