# SPDX-License-Identifier: Apache-2.0
"""ResNet-110, exclusive gating, b_g = 0 (He et al. 2016, table 1).

Published: "fail", a test error above 20 %, for b_g from 0 to -5.

    python -m experiments.run --config=configs/resnet110_exclusive_gating_0.py
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet110_exclusive_gating_0"
    config.expected_to_fail = True
    return config
