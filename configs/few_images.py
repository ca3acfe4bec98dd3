# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth on a small training set, which fits on two CPU cores.

ResNet-32 with stochastic and with constant depth (Huang et al. 2016, table 1, not
augmented) is trained for 20 epochs on 5,000 images of CIFAR-10 without augmentation.
The schedule is not the paper's, and the errors say nothing about the paper's. The rate
is in proportion to the size of a batch, and drops as in the paper.

    python -m experiments.run --config=configs/resnet32_few_images.py
"""

from configs import Row, default, huang2016


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        huang2016.get_config,
        batch_size=32,
        learning_rate=0.1 * 32 / 128,
        protocol="full",
        augment=False,
        train_examples=5000,
        epochs=20,
        eval_every_epochs=5,
        model_kwargs={"shortcut": "A_pooled"},
        paper="after Huang et al. 2016",
    )


ROWS = {
    "resnet32_few_images": Row("constant depth", fields={"model": "resnet32"}),
    "resnet32_sd_few_images": Row(
        "stochastic depth",
        fields={"model": "resnet32", "stochastic_depth": {"last_survival": 0.5}},
    ),
}
