# SPDX-License-Identifier: Apache-2.0
"""Pre-activation ResNet-110 trained on short paths alone (Veit et al. 2016, 4.3).

From the first drop of the rate on, 23 of the 54 blocks, chosen anew, are open in every
mini-batch: the paths that get gradient are as short as those that carry most of it in
the whole network. Published: 5.96 % test error on CIFAR-10, and 6.10 % for training
with all blocks. Unverified: the epoch from which, and the test rule, here that of
stochastic depth (a branch counts by 23/54).

    python -m experiments.run --config=configs/preact_resnet110_short_paths.py
"""

from configs import preact_resnet110

# The epoch of the first drop: it is at another one where an epoch has other steps.
_FIRST_DROP = {
    "digits": 15,
    "mnist": 68,
    "fashion_mnist": 68,
    "svhn_cropped": 7,
    "imagenet2012": 15,
}


def get_config(dataset="cifar10"):
    config = preact_resnet110.get_config(dataset)
    config.stochastic_depth = {"num_open": 23, "schedule": "uniform"}
    config.stochastic_depth_from_epoch = _FIRST_DROP.get(dataset, 82)
    config.paper = "Veit et al. 2016"
    config.published_error_percent = {"cifar10": 5.96}
    return config
