# SPDX-License-Identifier: Apache-2.0
"""Szegedy et al. 2017: Inception-ResNet-v2 on ImageNet.

The published error is top-1, of one crop (table 2 of arXiv 1602.07261, table 1 at
AAAI); its top-5 error is 4.9 %. Both leave out about 1,700 validation images, without
which the top-1 error is about 0.3 points smaller (section 5). The rate falls by 6 %
every two epochs, and running averages of the parameters are evaluated (section 4). The
paper's best networks were trained with RMSProp, its earlier ones with momentum, as
here. It found clipping of gradients useful, but states no threshold, so there is none.
Nor does it state batch size, length, weight decay or the decay of the averages: here
they are 256, 200 epochs, 4e-5, that of the authors' code, and 0.9999. A test image has
342 pixels before its crop of 299, which is 7/8 of it, as in that code.

    python -m experiments.run --config=configs/inception_resnet_v2.py
"""

from configs import Row, default, imagenet


def get_config(dataset="imagenet2012"):
    return default.recipe(
        dataset,
        imagenet.get_config,
        epochs=200,
        learning_rate=0.045,
        lr_schedule="piecewise",
        lr_drops=tuple(range(2, 200, 2)),
        lr_drops_unit="epochs",
        lr_factor=0.94,
        protocol="full",
        normalization="imagenet",
        train_crop="area",
        train_scales=(342, 480),  # not used by "area"
        pca_noise=0.0,
        image_size=299,
        eval_size=299,
        eval_resize=342,
        weight_decay=4e-5,
        ema_decay=0.9999,
        batch_norm_at_test="moving",
        paper="Szegedy et al. 2017",
    )


ROWS = {"inception_resnet_v2": Row("table 2", {"imagenet2012": 19.9})}
