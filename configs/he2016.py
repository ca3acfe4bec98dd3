# SPDX-License-Identifier: Apache-2.0
"""The recipe of He et al. 2016 on CIFAR. Not to be run itself.

It is that of 2015, with a warm-up in every run. The first row of tables 1 to 3, the
original ResNet-110 at 6.61 % (median of 5 runs), is resnet110_he2015.py.
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.warmup = 400  # at 0.01
    config.paper = "He et al. 2016"
    return default.with_dataset(config)
