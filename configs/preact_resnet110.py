# SPDX-License-Identifier: Apache-2.0
"""ResNet-110, full pre-activation (He et al. 2016, tables 2 and 3).

Published: 6.37 % test error on CIFAR-10, median of 5 runs.

    python -m experiments.run --config=configs/preact_resnet110.py
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "preact_resnet110"
    config.published_error_percent = {"cifar10": 6.37}
    return config
