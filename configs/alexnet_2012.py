# SPDX-License-Identifier: Apache-2.0
"""AlexNet in two towers on ImageNet (Krizhevsky et al. 2012).

The published error is top-1 on the validation set, of ten crops. The rate is divided
when the validation error stops falling, within some 90 epochs.

    python -m experiments.run --config=configs/alexnet_2012.py
"""

from configs import default, imagenet


def get_config(dataset="imagenet2012"):
    config = imagenet.get_config(dataset)
    config.model = "alexnet_2012"
    config.epochs = 90
    config.steps = None
    config.batch_size = 128
    config.learning_rate = 0.01
    config.train_scales = (256, 256)
    config.weight_decay = 5e-4
    if dataset != "imagenet2012":  # its weights begin small, for pixels up to 255
        config.normalization = "imagenet_mean"
    config.paper = "Krizhevsky et al. 2012"
    config.published_error_percent = {"imagenet2012": 40.7}
    return default.with_dataset(config)
