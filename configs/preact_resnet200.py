# SPDX-License-Identifier: Apache-2.0
"""Pre-activation ResNet-200 on ImageNet (He et al. 2016, table 5).

Published: 20.7 % top-1 error on the validation set, one crop of 320 pixels.

    python -m experiments.run --config=configs/preact_resnet200.py
"""

from configs import preact_resnet152


def get_config(dataset="imagenet2012"):
    config = preact_resnet152.get_config(dataset)
    config.model = "preact_resnet200"
    config.published_error_percent = {"imagenet2012": 20.7}
    return config
