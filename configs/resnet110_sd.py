# SPDX-License-Identifier: Apache-2.0
"""ResNet-110 with stochastic depth (Huang et al. 2016, table 1), p_L = 0.5.

The published errors are those at the best validation epoch. huang2016.py has other rows
of the paper.

    python -m experiments.run --config=configs/resnet110_sd.py[:DATASET]
"""

from configs import default, resnet110


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        resnet110.get_config,
        stochastic_depth={"last_survival": 0.5},
        published_error_percent={"cifar10": 5.25, "cifar100": 24.98},
    )
