# SPDX-License-Identifier: Apache-2.0
"""DenseNet-161 on ImageNet (Huang et al. 2017, the authors' code).

Published: 22.2 % top-1 error on the validation set.

    python -m experiments.run --config=configs/densenet161.py
"""

from configs import densenet121


def get_config(dataset="imagenet2012"):
    config = densenet121.get_config(dataset)
    config.model = "densenet161"
    config.published_error_percent = {"imagenet2012": 22.2}
    return config
