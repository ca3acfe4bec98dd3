# SPDX-License-Identifier: Apache-2.0
"""The recipe of He et al. 2015 on ImageNet. Not to be run itself.

The paper divides the rate when the error plateaus, within 600,000 iterations. Here the
schedule is fixed, that of fb.resnet.torch: 90 epochs, divided by 10 every 30.

Reading imagenet2012 is not built yet: `experiments.run` stops with one sentence, that
the data set is unknown. With the name of another one after the colon it trains on that,
with the stem for small images.
"""

from configs import default


def get_config(dataset="imagenet2012"):
    config = default.get_config(dataset)
    config.epochs = 90
    config.steps = None
    config.batch_size = 256
    config.lr_drops = (30, 60)
    config.lr_drops_unit = "epochs"
    if dataset != "imagenet2012":
        config.model_kwargs.stem = "small"
    return default.with_dataset(config)
