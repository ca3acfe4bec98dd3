# SPDX-License-Identifier: Apache-2.0
"""Shen et al. 2016: a weighted residual network on CIFAR-10.

Of the paper we have read only the abstract, whose error is 4.7 %, of 1,192 layers. Here
are the 110 layers and the recipe of He et al. 2016, without their warm-up, because all
blocks begin as identities. The paper's projection of the weights onto (-1, 1) is
explained in rn_jax/models/weighted.py.

    python -m experiments.run --config=configs/weighted_resnet110.py[:DATASET]
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    return default.recipe(dataset, paper="Shen et al. 2016")


ROWS = {"weighted_resnet110": Row("the block, at 110 layers")}
