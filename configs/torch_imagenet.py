# SPDX-License-Identifier: Apache-2.0
"""The recipe of fb.resnet.torch on ImageNet, without a network.

The Torch codes of pre-activation ResNets, ResNeXt, DenseNet and stochastic depth are
based on it.
"""

from configs import Row, default, imagenet


def get_config(dataset="imagenet2012"):
    return default.recipe(
        dataset,
        imagenet.get_config,
        epochs=90,
        lr_schedule="piecewise",
        lr_drops=(30, 60),
        lr_drops_unit="epochs",
        protocol="full",
        normalization="imagenet",
        train_crop="area",
        color_jitter=0.4 if dataset == "imagenet2012" else 0.0,
        batch_norm_at_test="moving",
        **default.TORCH_SGD,
    )


def row(where, error, **fields):
    """Return a row that is trained on ImageNet by this recipe with some changes."""
    return Row(where, {"imagenet2012": error}, fields, get_config)
