# SPDX-License-Identifier: Apache-2.0
"""The recipe of He et al. 2015 on ImageNet, section 3.4. Not to be run itself.

Its errors are those of 10 crops, which `python -m experiments.evaluate --crops=ten`
gives for a finished run. The rate is divided when the validation error plateaus, within
600,000 iterations. BatchNorm is tested with averages over training images, as in the
released networks. The mean image, which is subtracted, is that of the centre crops of
`mean_image_examples` training images. So that the images that errors are reported on
choose nothing, 50,000 training images are held out for that.

With the name of another data set after the colon it trains on that, with the stem for
small images, and for as many epochs as on ImageNet: 120, and not 600,000 iterations.
"""

from configs import default


def get_config(dataset="imagenet2012"):
    config = default.get_config(dataset)
    config.batch_size = 256
    set_iterations(config, 600_000)
    config.lr_schedule = "plateau"
    config.protocol = "45k5k"
    config.train_crop = "scale"
    config.pca_noise = 0.1
    config.batch_norm_at_test = "exact"
    if dataset != "imagenet2012":
        config.model_kwargs.stem = "small"
        config.pca_noise = 0.0
    return default.with_dataset(config)


def set_iterations(config, steps):
    """Set the length to so many steps on ImageNet; elsewhere to as many epochs."""
    config.steps = steps
    if config.dataset != "imagenet2012":
        config.epochs = round(steps * config.batch_size / 1_281_167)
        config.steps = None
