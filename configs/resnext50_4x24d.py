# SPDX-License-Identifier: Apache-2.0
"""ResNeXt-50, 4x24d, on ImageNet (Xie et al. 2017, table 3).

Published: 22.6 % top-1 error on the validation set, one crop of 224 pixels.

    python -m experiments.run --config=configs/resnext50_4x24d.py
"""

from configs import resnext50_1x64d


def get_config(dataset="imagenet2012"):
    config = resnext50_1x64d.get_config(dataset)
    config.model = "resnext50_4x24d"
    config.published_error_percent = {"imagenet2012": 22.6}
    return config
