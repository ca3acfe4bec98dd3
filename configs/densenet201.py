# SPDX-License-Identifier: Apache-2.0
"""DenseNet-201 on ImageNet (Huang et al. 2017, table 3).

Published: 22.58 % top-1 error on the validation set, one crop of 224 pixels.

    python -m experiments.run --config=configs/densenet201.py
"""

from configs import densenet121


def get_config(dataset="imagenet2012"):
    config = densenet121.get_config(dataset)
    config.model = "densenet201"
    config.published_error_percent = {"imagenet2012": 22.58}
    return config
