# SPDX-License-Identifier: Apache-2.0
"""VGG-11 on ImageNet (Simonyan and Zisserman 2015, column A).

Published: this project's sources have no number for it.

    python -m experiments.run --config=configs/vgg11.py
"""

from configs import vgg16


def get_config(dataset="imagenet2012"):
    config = vgg16.get_config(dataset)
    config.model = "vgg11"
    config.published_error_percent = {}
    return config
