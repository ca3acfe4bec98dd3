# SPDX-License-Identifier: Apache-2.0
"""ResNet-110, shortcut-only gating, b_g = 0 (He et al. 2016, table 1).

Published: 12.86 % test error on CIFAR-10, median of 5 runs.

    python -m experiments.run --config=configs/resnet110_shortcut_gating_0.py
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet110_shortcut_gating_0"
    config.published_error_percent = {"cifar10": 12.86}
    return config
