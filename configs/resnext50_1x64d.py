# SPDX-License-Identifier: Apache-2.0
"""ResNet-50, the baseline of ResNeXt-50 (Xie et al. 2017, table 3).

Published: 23.9 % top-1 error on the validation set, one crop of 224 pixels. The paper
divides the rate three times; as in its code, every 30 of 100 epochs.

    python -m experiments.run --config=configs/resnext50_1x64d.py
"""

from configs import default, torch_imagenet


def get_config(dataset="imagenet2012"):
    config = torch_imagenet.get_config(dataset)
    config.model = "resnext50_1x64d"
    config.epochs = 100
    config.lr_drops = (30, 60, 90)
    config.paper = "Xie et al. 2017"
    config.published_error_percent = {"imagenet2012": 23.9}
    return default.with_dataset(config)
