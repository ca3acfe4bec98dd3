# SPDX-License-Identifier: Apache-2.0
"""ResNet-34, shortcut A, on ImageNet (He et al. 2015, tables 2 and 3).

Published: 25.03 % top-1 error on the validation set, 10 crops.

    python -m experiments.run --config=configs/resnet34_a.py
"""

from configs import imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.model = "resnet34"
    config.model_kwargs.shortcut = "A"
    config.published_error_percent = {"imagenet2012": 25.03}
    return config
