# SPDX-License-Identifier: Apache-2.0
"""VGG-16 on ImageNet (Simonyan and Zisserman 2015, column D).

Published: 27.0 % top-1 error on the validation set, dense, at one scale of 256.
The rate is divided when the validation error stops falling, within 370,000 iterations.
Trained on crops of images whose shorter side is 256.

    python -m experiments.run --config=configs/vgg16.py
"""

from configs import default, imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.model = "vgg16"
    imagenet.set_iterations(config, 370_000)
    config.learning_rate = 0.01
    config.train_scales = (256, 256)
    config.normalization = "imagenet_mean"
    config.weight_decay = 5e-4
    config.paper = "Simonyan and Zisserman 2015"
    config.published_error_percent = {"imagenet2012": 27.0}
    return default.with_dataset(config)
