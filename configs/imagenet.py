# SPDX-License-Identifier: Apache-2.0
"""The recipe of He et al. 2015 on ImageNet, section 3.4. Not to be run itself.

Its errors are those of 10 crops, which `python -m experiments.evaluate --crops=ten`
gives for a finished run. The rate is divided when the validation error plateaus, within
600,000 iterations. BatchNorm is tested with averages over training images, as in the
released networks. So that the images that errors are reported on choose nothing,
50,000 training images are held out for that.

With the name of another data set after the colon it trains on that, with the stem for
small images.
"""

from configs import default


def get_config(dataset="imagenet2012"):
    config = default.get_config(dataset)
    config.steps = 600_000
    config.batch_size = 256
    config.lr_schedule = "plateau"
    config.protocol = "45k5k"
    config.normalization = "imagenet_mean"
    config.train_crop = "scale"
    config.pca_noise = 0.1
    config.batch_norm_at_test = "exact"
    if dataset != "imagenet2012":
        config.model_kwargs.stem = "small"
        config.pca_noise = 0.0
    return default.with_dataset(config)
