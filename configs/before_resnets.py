# SPDX-License-Identifier: Apache-2.0
"""AlexNet, GoogLeNet and VGG on ImageNet, by the recipes of their papers.

Errors are top-1: of VGG dense, at one scale of 256 (`python -m experiments.evaluate
--crops=dense --scales=256`); of AlexNet over ten crops (`--crops=ten`). For
GoogLeNet the paper has only a top-5 error, 10.07 % of one model and one crop; for
VGG-11 and VGG-13 no number was available. The rate is divided when the validation error
stops falling, within 370,000 iterations (VGG) or about 90 epochs (AlexNet), on crops of
images whose shorter side is 256. The rate of GoogLeNet falls by 4 % every 8 epochs; its
initial value, the batch size, the weight decay and the length are those of the
re-training in Caffe. The paper averages weights over time (Polyak and Juditsky 1992)
and does not say how; the decay is that of TensorFlow's recipe for later Inception
networks (secondary source). Unlike here, the paper trains asynchronously.

    python -m experiments.run --config=configs/vgg16.py
"""

from configs import Row, default, imagenet

_SHARED = {"learning_rate": 0.01, "normalization": "imagenet_mean"}


def get_config(dataset="imagenet2012"):
    return default.recipe(
        dataset,
        imagenet.get_config,
        **_SHARED,
        **imagenet.length(dataset, 370_000),
        weight_decay=5e-4,
        train_scales=(256, 256),
        paper="Simonyan and Zisserman 2015",
    )


def of_alexnet(dataset="imagenet2012"):
    config = default.recipe(
        dataset,
        imagenet.get_config,
        **_SHARED,
        epochs=90,
        batch_size=128,
        weight_decay=5e-4,
        train_scales=(256, 256),
        paper="Krizhevsky et al. 2012",
    )
    if dataset == "imagenet2012":  # elsewhere it also divides by a number
        config.normalization = "mean_image"
    return config


def of_googlenet(dataset="imagenet2012"):
    return default.recipe(
        dataset,
        imagenet.get_config,
        **_SHARED,
        epochs=250,
        batch_size=32,
        lr_schedule="piecewise",
        lr_drops=tuple(range(8, 250, 8)),
        lr_drops_unit="epochs",
        lr_factor=0.96,
        protocol="full",
        train_crop="area",
        weight_decay=2e-4,
        ema_decay=0.9999,
        paper="Szegedy et al. 2015",
    )


ROWS = {
    "alexnet_2012": Row("two towers", {"imagenet2012": 40.7}, recipe=of_alexnet),
    "googlenet_2014": Row("one model", recipe=of_googlenet),
    "vgg11": Row("column A"),
    "vgg13": Row("column B"),
    "vgg16": Row("column D", {"imagenet2012": 27.0}),
    "vgg19": Row("column E", {"imagenet2012": 27.3}),
}
