# SPDX-License-Identifier: Apache-2.0
"""VGG-13 on ImageNet (Simonyan and Zisserman 2015, column B).

Published: this project's sources have no number for it.

    python -m experiments.run --config=configs/vgg13.py
"""

from configs import vgg16


def get_config(dataset="imagenet2012"):
    config = vgg16.get_config(dataset)
    config.model = "vgg13"
    config.published_error_percent = {}
    return config
