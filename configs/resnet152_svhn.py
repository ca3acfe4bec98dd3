# SPDX-License-Identifier: Apache-2.0
"""ResNet of 152 layers, 6n + 2, of constant depth on SVHN (Huang et al. 2016, table 1).

Published: 1.80 % test error at the best validation error. Of each class 400 images of
"train" and 200 of "extra" are held out, and looked at every 200 iterations.

    python -m experiments.run --config=configs/resnet152_svhn.py
"""

from configs import default, resnet110


def get_config(dataset="svhn_cropped"):
    config = resnet110.get_config(dataset)
    config.model = "resnet152_svhn"
    config.model_kwargs = {}
    config.augment = False
    config.epochs = 50
    config.lr_drops = (30, 35)
    config.lr_drops_unit = "epochs"
    config.eval_every_steps = 200
    config.published_error_percent = {"svhn_cropped": 1.80}
    return default.with_dataset(config)
