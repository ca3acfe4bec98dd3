# SPDX-License-Identifier: Apache-2.0
"""Plain network of 34 layers on ImageNet (He et al. 2015, table 2).

Published: 28.54 % top-1 error on the validation set, 10 crops.

    python -m experiments.run --config=configs/plain34.py
"""

from configs import imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.model = "plain34"
    config.published_error_percent = {"imagenet2012": 28.54}
    return config
