# SPDX-License-Identifier: Apache-2.0
"""Degradation on CIFAR-10 in a schedule that fits on two CPU cores.

Networks with and without shortcuts (He et al. 2015, figure 6) are trained for 1,000
steps of 32 images, 0.64 epochs. The rate is scaled with the batch size (0.1 for 128
images), and decays linearly. The schedule is not the paper's, and the errors say
nothing about the paper's.

    python -m experiments.run --config=configs/resnet56_short.py
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        batch_size=32,
        learning_rate=0.1 * 32 / 128,
        steps=1000,
        lr_schedule="linear",
        eval_every_steps=500,
        log_every_steps=20,
        paper="after He et al. 2015",
    )


ROWS = {
    f"{model}_short": Row(f"{model} in 1,000 steps", fields={"model": model})
    for model in ("plain20", "plain56", "resnet20", "resnet56")
}
