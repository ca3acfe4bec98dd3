# SPDX-License-Identifier: Apache-2.0
"""Plain network of 32 layers on CIFAR-10 (He et al. 2015, figure 6, left).

Published: curves only, no number.

    python -m experiments.run --config=configs/plain32.py
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "plain32"
    return default.with_dataset(config)
