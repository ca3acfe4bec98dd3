# SPDX-License-Identifier: Apache-2.0
"""Plain networks with 2x2 max-pooling between stages, by the recipe of He et al. 2015.

No paper has them. The plain networks of He et al. halve an image by a convolution with
a stride of 2; earlier networks, such as VGG, by 2x2 max-pooling after a convolution.

    python -m experiments.run --config=configs/plain34_max_pool.py[:DATASET]
"""

from configs import Row, default, imagenet


def get_config(dataset="imagenet2012"):
    return default.recipe(dataset, imagenet.get_config, paper="after He et al. 2015")


ROWS = {
    "plain18_max_pool": Row("plain18 with max-pooling"),
    "plain34_max_pool": Row("plain34 with max-pooling"),
}
