# SPDX-License-Identifier: Apache-2.0
"""Plain network of 110 layers on CIFAR-10 (He et al. 2015, section 4.2).

Published: over 60 %, not drawn.

    python -m experiments.run --config=configs/plain110.py
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "plain110"
    return default.with_dataset(config)
