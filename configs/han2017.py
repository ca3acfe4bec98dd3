# SPDX-License-Identifier: Apache-2.0
"""Han et al. 2017: PyramidNets on CIFAR.

Errors and the recipe are those of the README of the authors' code, which is based on
fb.resnet.torch. On CIFAR-100 the rate is 0.5. The README prints 28.3 million parameters
for the widest networks of 110 layers; here they have 28.3 and 28.5.

    python -m experiments.run --config=configs/pyramidnet110_48.py[:DATASET]
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    config = default.recipe(
        dataset,
        normalization="channel",
        epochs=300,
        lr_drops=(150, 225),
        lr_drops_unit="epochs",
        **default.TORCH_SGD,
        paper="Han et al. 2017",
    )
    if dataset == "cifar100":
        config.learning_rate = 0.5
    return config


def _row(cifar10, cifar100):
    return Row("the authors' code", {"cifar10": cifar10, "cifar100": cifar100})


ROWS = {
    "pyramidnet110_48": _row(4.62, 23.31),
    "pyramidnet110_84": _row(4.27, 20.21),
    "pyramidnet110_270": _row(3.73, 18.25),
    "pyramidnet110_mul4_75": _row(4.62, 23.16),
    "pyramidnet110_mul8": _row(4.50, 20.94),
    "pyramidnet110_mul27": _row(4.06, 18.79),
    "pyramidnet164_48": _row(4.21, 19.52),
    "pyramidnet164_84": _row(3.96, 18.32),
    "pyramidnet164_270": _row(3.48, 17.01),
    "pyramidnet200_240": _row(3.44, 16.51),
    "pyramidnet236_220": _row(3.40, 16.37),
    "pyramidnet272_200": _row(3.31, 16.35),
}
