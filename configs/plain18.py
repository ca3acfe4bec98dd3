# SPDX-License-Identifier: Apache-2.0
"""Plain network of 18 layers on ImageNet (He et al. 2015, table 2).

Published: 27.94 % top-1 error on the validation set, 10 crops.

    python -m experiments.run --config=configs/plain18.py
"""

from configs import imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.model = "plain18"
    config.published_error_percent = {"imagenet2012": 27.94}
    return config
