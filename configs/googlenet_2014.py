# SPDX-License-Identifier: Apache-2.0
"""GoogLeNet in the paper's form on ImageNet (Szegedy et al. 2015).

Published: top-5 alone: 10.07 % on the validation set, one model and one crop. The rate
falls by 4 % every 8 epochs; where it starts, the batch, the decay and the length are
those of the re-training in Caffe. Not as in the paper: it averages the weights over
time and trained asynchronously.

    python -m experiments.run --config=configs/googlenet_2014.py
"""

from configs import default, imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.model = "googlenet_2014"
    config.epochs = 250
    config.steps = None
    config.batch_size = 32
    config.learning_rate = 0.01
    config.lr_schedule = "piecewise"
    config.lr_drops = tuple(range(8, 250, 8))
    config.lr_drops_unit = "epochs"
    config.lr_factor = 0.96
    config.protocol = "full"
    config.train_crop = "area"
    config.normalization = "imagenet_mean"
    config.weight_decay = 2e-4
    config.paper = "Szegedy et al. 2015"
    return default.with_dataset(config)
