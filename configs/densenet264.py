# SPDX-License-Identifier: Apache-2.0
"""DenseNet-264 on ImageNet (Huang et al. 2017, table 3).

Published: 22.15 % top-1 error on the validation set, one crop of 224 pixels.

    python -m experiments.run --config=configs/densenet264.py
"""

from configs import densenet121


def get_config(dataset="imagenet2012"):
    config = densenet121.get_config(dataset)
    config.model = "densenet264"
    config.published_error_percent = {"imagenet2012": 22.15}
    return config
