# SPDX-License-Identifier: Apache-2.0
"""ResNet-110 of constant depth by the recipe of Huang et al. 2016, table 1.

The recipe is in huang2016.py; the twin is resnet110_sd.py. The published errors are
those at the best validation epoch. configs/resnet110_he2015.py, a row of he2015.py, has
the recipe of He et al. 2015. In the authors' code convolutions also have biases, which
have no effect before a BatchNorm; --config.model_kwargs.conv_bias=True adds them
(1,732,010 parameters).

    python -m experiments.run --config=configs/resnet110.py[:DATASET]
"""

from configs import default, huang2016


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        huang2016.get_config,
        model="resnet110",
        model_kwargs={"shortcut": "A_pooled"},
        published_error_percent={"cifar10": 6.41, "cifar100": 27.22},
    )
