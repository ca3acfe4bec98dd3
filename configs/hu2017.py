# SPDX-License-Identifier: Apache-2.0
"""Hu et al. 2017: squeeze-and-excitation on ImageNet, section 5, and on CIFAR-10.

On ImageNet, batches of 1,024, 0.6 divided by 10 every 30 of 100 epochs; the rest is the
recipe of fb.resnet.torch. Errors are of one crop of 224 pixels (table 2). Bottlenecks
have the stride on the first 1x1 convolution, which follows from the paper's 3.86
billion multiply-adds of ResNet-50. Secondary sources: a summary of the paper that
quotes its recipe and the errors of SE-ResNet-50 and -101; the README of the authors'
code has batch and rate, too. That of SE-ResNet-152 is from memory. Networks of that
README were trained for longer with smaller batches, and have smaller errors.

The recipe on CIFAR-10 is here that of He et al. 2016, since we have not read the
paper's; the error of SE-ResNet-110 is quoted by A. Huang's replication.

    python -m experiments.run --config=configs/se_resnet50.py[:DATASET]
"""

from configs import Row, default, he2016, torch_imagenet


def get_config(dataset="imagenet2012"):
    return default.recipe(
        dataset,
        torch_imagenet.get_config,
        batch_size=1024,
        learning_rate=0.6,
        epochs=100,
        lr_drops=(30, 60, 90),
        paper="Hu et al. 2017",
    )


def _row(error):
    stride = {"block_kwargs": {"stride_on": "1x1"}}
    return Row("table 2", {"imagenet2012": error}, {"model_kwargs": stride})


ROWS = {
    "se_resnet50": _row(23.29),
    "se_resnet101": _row(22.38),
    "se_resnet152": _row(21.57),
    "se_resnet110": Row("CIFAR-10", {"cifar10": 5.21}, recipe=he2016.get_config),
}
