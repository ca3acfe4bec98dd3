# SPDX-License-Identifier: Apache-2.0
"""DenseNet-169 on ImageNet (Huang et al. 2017, table 3).

Published: 23.80 % top-1 error on the validation set, one crop of 224 pixels.

    python -m experiments.run --config=configs/densenet169.py
"""

from configs import densenet121


def get_config(dataset="imagenet2012"):
    config = densenet121.get_config(dataset)
    config.model = "densenet169"
    config.published_error_percent = {"imagenet2012": 23.8}
    return config
