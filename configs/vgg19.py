# SPDX-License-Identifier: Apache-2.0
"""VGG-19 on ImageNet (Simonyan and Zisserman 2015, column E).

Published: 27.3 % top-1 error on the validation set, dense, at one scale of 256.

    python -m experiments.run --config=configs/vgg19.py
"""

from configs import vgg16


def get_config(dataset="imagenet2012"):
    config = vgg16.get_config(dataset)
    config.model = "vgg19"
    config.published_error_percent = {"imagenet2012": 27.3}
    return config
