# SPDX-License-Identifier: Apache-2.0
"""ResNet-110, shortcut times 0.5, branch times 1 (He et al. 2016, table 1).

Published: "fail", a test error above 20 %.

    python -m experiments.run --config=configs/resnet110_scaling_05_1.py
"""

from configs import he2016


def get_config(dataset="cifar10"):
    config = he2016.get_config(dataset)
    config.model = "resnet110_scaling_05_1"
    config.expected_to_fail = True
    return config
