# SPDX-License-Identifier: Apache-2.0
"""Yamada et al. 2018: PyramidNet with ShakeDrop on CIFAR.

The recipe is that of PyramidNet with a rate of 0.5, as in the README of the authors'
code. That code draws alpha and beta for every pixel; its error of 15.78 % on CIFAR-100
is therefore not that of these gates, which are drawn for each image.

    python -m experiments.run --config=configs/pyramidnet110_270_shake.py[:DATASET]
"""

from configs import Row, default, han2017


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        han2017.get_config,
        learning_rate=0.5,
        stochastic_depth={"last_survival": 0.5, "shake": "example"},
        paper="Yamada et al. 2018",
    )


ROWS = {
    "pyramidnet110_270_shake": Row(
        "110 layers, image level", fields={"model": "pyramidnet110_270"}
    ),
}
