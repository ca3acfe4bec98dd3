# SPDX-License-Identifier: Apache-2.0
"""Pre-activation ResNet-152 on ImageNet (He et al. 2016, table 5).

Published: 21.1 % top-1 error on the validation set, one crop of 320 pixels. Without
warm-up, with crops of random scale; the rest is that of fb.resnet.torch.

    python -m experiments.run --config=configs/preact_resnet152.py
"""

from configs import torch_imagenet


def get_config(dataset="imagenet2012"):
    config = torch_imagenet.get_config(dataset)
    config.model = "preact_resnet152"
    config.train_crop = "scale"
    config.eval_resize = 320
    config.eval_size = 320
    config.paper = "He et al. 2016"
    config.published_error_percent = {"imagenet2012": 21.1}
    return config
