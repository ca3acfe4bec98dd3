# SPDX-License-Identifier: Apache-2.0
"""ResNeXt-101, 64x4d, on ImageNet (Xie et al. 2017, table 4).

Published: 20.4 % top-1 error on the validation set, one crop of 224 pixels.

    python -m experiments.run --config=configs/resnext101_64x4d.py
"""

from configs import resnext50_1x64d


def get_config(dataset="imagenet2012"):
    config = resnext50_1x64d.get_config(dataset)
    config.model = "resnext101_64x4d"
    config.published_error_percent = {"imagenet2012": 20.4}
    return config
