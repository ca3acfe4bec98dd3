# SPDX-License-Identifier: Apache-2.0
"""ResNet-18, shortcut A, on ImageNet (He et al. 2015, table 2).

Published: 27.88 % top-1 error on the validation set, 10 crops.

    python -m experiments.run --config=configs/resnet18.py
"""

from configs import imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.model = "resnet18"
    config.model_kwargs.shortcut = "A"
    config.published_error_percent = {"imagenet2012": 27.88}
    return config
