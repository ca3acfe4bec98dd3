# SPDX-License-Identifier: Apache-2.0
"""ResNet-152 on ImageNet (He et al. 2015, table 3).

Published: 21.43 % top-1 error on the validation set, 10 crops.

    python -m experiments.run --config=configs/resnet152.py
"""

from configs import imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.model = "resnet152"
    config.model_kwargs.block_kwargs = {"stride_on": "1x1"}
    config.published_error_percent = {"imagenet2012": 21.43}
    return config
