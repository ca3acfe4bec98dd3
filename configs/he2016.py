# SPDX-License-Identifier: Apache-2.0
"""The recipe of He et al. 2016 on CIFAR. Not to be run itself.

It is that of 2015, with a warm-up of 400 iterations in every run.
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.warmup = 400  # at 0.01
    config.paper = "He et al. 2016"
    return default.with_dataset(config)
