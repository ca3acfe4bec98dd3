# SPDX-License-Identifier: Apache-2.0
"""DenseNet-121 on ImageNet (Huang et al. 2017, table 3).

Published: 25.02 % top-1 error on the validation set, one crop of 224 pixels.

    python -m experiments.run --config=configs/densenet121.py
"""

from configs import default, torch_imagenet


def get_config(dataset="imagenet2012"):
    config = torch_imagenet.get_config(dataset)
    config.model = "densenet121"
    config.paper = "Huang et al. 2017"
    config.published_error_percent = {"imagenet2012": 25.02}
    return default.with_dataset(config)
