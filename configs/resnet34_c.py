# SPDX-License-Identifier: Apache-2.0
"""ResNet-34, shortcut C, on ImageNet (He et al. 2015, table 3).

Published: 24.19 % top-1 error on the validation set, 10 crops.

    python -m experiments.run --config=configs/resnet34_c.py
"""

from configs import imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.model = "resnet34"
    config.model_kwargs.shortcut = "C"
    config.published_error_percent = {"imagenet2012": 24.19}
    return config
