# SPDX-License-Identifier: Apache-2.0
"""ResNet-110 on CIFAR-10 (He et al. 2015, table 6).

Published: 6.43 % test error (6.61 ± 0.16 over 5 runs).

    python -m experiments.run --config=configs/resnet110_he2015.py
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "resnet110"
    config.warmup_until_error = 80.0  # "about 400 iterations"
    config.published_error_percent = {"cifar10": 6.43}
    return default.with_dataset(config)
