# SPDX-License-Identifier: Apache-2.0
"""ResNet-34, shortcut B, on ImageNet (He et al. 2015, table 3).

Published: 24.52 % top-1 error on the validation set, 10 crops.

    python -m experiments.run --config=configs/resnet34_b.py
"""

from configs import imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.model = "resnet34"
    config.published_error_percent = {"imagenet2012": 24.52}
    return config
