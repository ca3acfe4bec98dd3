# SPDX-License-Identifier: Apache-2.0
"""VGG of 15 layers for CIFAR, from which Veit et al. 2016 delete layers.

They publish no error of the whole network and no recipe; this is the recipe of the
residual networks to which it is compared.

On digits it has no dropout after its convolutions, and a rate of 0.05 instead of 0.01:
30 epochs are too few to learn with that dropout.

    python -m experiments.run --config=configs/vgg15.py[:DATASET]
"""

from configs import default


def get_config(dataset="cifar10"):
    config = default.recipe(
        dataset, model="vgg15", normalization="channel", paper="Veit et al. 2016"
    )
    if dataset == "digits":
        config.model_kwargs.conv_dropout = ()
        config.learning_rate = 0.05
    return config
