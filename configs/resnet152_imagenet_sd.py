# SPDX-License-Identifier: Apache-2.0
"""ResNet-152 with stochastic depth on ImageNet (Huang et al. 2016, section 4).

Published: 21.98 % top-1 error on the validation set after 120 epochs, and 23.38 % after
90, against 21.78 % and 23.06 % at constant depth: the last 30 are at a rate of 0.0001.

    python -m experiments.run --config=configs/resnet152_imagenet_sd.py
"""

from configs import default, torch_imagenet


def get_config(dataset="imagenet2012"):
    config = torch_imagenet.get_config(dataset)
    config.model = "resnet152"
    config.stochastic_depth = {"last_survival": 0.5}
    config.epochs = 120
    config.batch_size = 128
    config.lr_drops = (30, 60, 90)
    config.paper = "Huang et al. 2016"
    config.published_error_percent = {"imagenet2012": 21.98}
    return default.with_dataset(config)
