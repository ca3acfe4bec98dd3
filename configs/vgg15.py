# SPDX-License-Identifier: Apache-2.0
"""VGG of 15 layers for CIFAR, which Veit et al. 2016 take layers out of.

Published: no error of the whole network. Their recipe is not known; this is that of the
residual networks which it is laid beside.

    python -m experiments.run --config=configs/vgg15.py[:DATASET]
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.get_config(dataset)
    config.model = "vgg15"
    config.normalization = "channel"
    config.paper = "Veit et al. 2016"
    return default.with_dataset(config)
