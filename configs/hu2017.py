# SPDX-License-Identifier: Apache-2.0
"""Hu et al. 2017: squeeze-and-excitation on ImageNet, section 5.

Batches of 1,024, 0.6 divided by 10 every 30 of 100 epochs; the rest is the recipe of
fb.resnet.torch. Errors are of one crop of 224 pixels (table 2). Secondary source: the
rates and errors are from memory of the paper, whose text was not available here.

    python -m experiments.run --config=configs/se_resnet50.py[:DATASET]
"""

from configs import Row, default, torch_imagenet


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


ROWS = {
    "se_resnet50": Row("table 2", {"imagenet2012": 23.29}),
    "se_resnet101": Row("table 2", {"imagenet2012": 22.38}),
    "se_resnet152": Row("table 2", {"imagenet2012": 21.57}),
}
