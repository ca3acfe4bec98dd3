# SPDX-License-Identifier: Apache-2.0
"""Plain-110 and ResNet-110 with steps of bounded size, after He et al. 2015.

They are not from a paper. At the start, the gradient of plain-110 with BatchNorm is a
million times larger in its first layers than in its last ones, and it does not learn.
If large steps were the reason, it would learn once large gradients no longer cause
them: with the norm of the whole gradient clipped to 1, or by AdamW, which divides each
weight's step by the size of its own gradients. Clipping keeps the ratios of the layers;
AdamW does not. ResNet-110 shows whether these recipes train a network whose gradient
does not explode.

The rate of AdamW is its usual one, 0.001, on every data set.

    python -m experiments.run --config=configs/plain110_clipped.py[:DATASET]
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    return default.recipe(dataset, clip_norm=1.0, paper="after He et al. 2015")


def by_adamw(dataset="cifar10"):
    return default.recipe(
        dataset, optimizer="adamw", learning_rate=0.001, paper="after He et al. 2015"
    )


_PLAIN, _RESIDUAL = {"model": "plain110"}, {"model": "resnet110"}

ROWS = {
    "plain110_clipped": Row("plain110 with clipping", fields=_PLAIN),
    "plain110_adamw": Row("plain110 by AdamW", fields=_PLAIN, recipe=by_adamw),
    "resnet110_clipped": Row("resnet110 with clipping", fields=_RESIDUAL),
    "resnet110_adamw": Row("resnet110 by AdamW", fields=_RESIDUAL, recipe=by_adamw),
}
