# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth on a small training set, a comparison that two CPU cores can run.

After table 1 of Huang et al. 2016 (ResNet-110, not augmented), ResNet-32 is trained
with stochastic and with constant depth, for 20 epochs on 5,000 images of CIFAR-10. The
rate is scaled with the batch size (0.1 for 128 images), and drops as in the paper. The
schedule is not the paper's, and the errors say nothing about the paper's.

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
