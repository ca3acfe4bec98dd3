# SPDX-License-Identifier: Apache-2.0
"""Simonyan and Zisserman 2015: VGG on ImageNet.

The errors are of one network, applied densely at one scale of 256; of VGG-11 and VGG-13
this project's sources have no number. The rate is divided when the validation error
stops falling, within 370,000 iterations, on crops of images whose shorter side is 256.

    python -m experiments.run --config=configs/vgg16.py
"""

from configs import Row, default, imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    imagenet.set_iterations(config, 370_000)
    config.learning_rate = 0.01
    config.train_scales = (256, 256)
    config.normalization = "imagenet_mean"
    config.weight_decay = 5e-4
    config.paper = "Simonyan and Zisserman 2015"
    return default.with_dataset(config)


ROWS = {
    "vgg11": Row("column A"),
    "vgg13": Row("column B"),
    "vgg16": Row("column D", {"imagenet2012": 27.0}),
    "vgg19": Row("column E", {"imagenet2012": 27.3}),
}
