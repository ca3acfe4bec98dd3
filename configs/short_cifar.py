# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 in schedules that fit on two CPU cores, after two papers.

They are not from the papers, and say nothing about the papers' errors.

Degradation (He et al. 2015, figure 6): networks with and without shortcuts, trained
for 1,000 steps of 32 images, 0.64 epochs. The rate is in proportion to the size of a
batch, and decays linearly.

Overfitting (Huang et al. 2016, table 1, not augmented): ResNet-32 with stochastic depth
and with constant depth, trained for 20 epochs on 5,000 images without augmentation. The
rate is in proportion to the size of a batch, and drops as in the paper.

    python -m experiments.run --config=configs/resnet56_short.py
"""

from typing import Any

from configs import Row, default, huang2016

_BATCH: Any = {"batch_size": 32, "learning_rate": 0.1 * 32 / 128}


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        **_BATCH,
        steps=1000,
        lr_schedule="linear",
        eval_every_steps=500,
        log_every_steps=20,
        paper="after He et al. 2015",
    )


def on_few_images(dataset="cifar10"):
    return default.recipe(
        dataset,
        huang2016.get_config,
        **_BATCH,
        protocol="full",
        augment=False,
        train_examples=5000,
        epochs=20,
        eval_every_epochs=5,
        paper="after Huang et al. 2016",
    )


_FEW = {"model": "resnet32", "model_kwargs": {"shortcut": "A_pooled"}}
_FEW_SD = {**_FEW, "stochastic_depth": {"last_survival": 0.5}}

ROWS = {
    "plain20_short": Row("plain20 in 1,000 steps", fields={"model": "plain20"}),
    "plain56_short": Row("plain56 in 1,000 steps", fields={"model": "plain56"}),
    "resnet20_short": Row("resnet20 in 1,000 steps", fields={"model": "resnet20"}),
    "resnet56_short": Row("resnet56 in 1,000 steps", fields={"model": "resnet56"}),
    "resnet32_few_images": Row("constant depth", fields=_FEW, recipe=on_few_images),
    "resnet32_sd_few_images": Row(
        "stochastic depth", fields=_FEW_SD, recipe=on_few_images
    ),
}
