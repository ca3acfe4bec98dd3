# SPDX-License-Identifier: Apache-2.0
"""Zhang et al. 2016: residual networks of residual networks on CIFAR and SVHN.

The abstract of the paper (1608.02908) has the errors of RoR-3-WRN58-4+SD. Secondary
sources, because the rest of its text was not available here: the other errors are from
a review (S.-H. Tsang, "RoR: ResNet of ResNet"), the recipe is that of the repository
nutszebra/residual_networks_of_residual_networks, which is the recipe of Huang et al.
2016 on all training images. +SD is stochastic depth with p_L = 0.5. On SVHN the recipe
is theirs too: 50 epochs without augmentation, divided at 30 and 35. Pixels are
normalised by channel, which is our choice. Networks without stochastic depth are here
for comparison, without published errors.

    python -m experiments.run --config=configs/ror3_164_sd.py[:DATASET]
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    config = default.recipe(
        dataset,
        normalization="channel",
        epochs=500,
        lr_drops=(250, 375),
        lr_drops_unit="epochs",
        **default.TORCH_SGD,
        paper="Zhang et al. 2016",
    )
    if dataset == "svhn_cropped":
        config.epochs = 50
        config.lr_drops = (30, 35)
        config.augment = False
    return config


def _sd(model, where, *errors):
    columns = ("cifar10", "cifar100", "svhn_cropped")
    fields = {"model": model, "stochastic_depth": {"last_survival": 0.5}}
    return Row(where, dict(zip(columns, errors, strict=False)), fields)


ROWS = {
    "ror3_110": Row("RoR-3-110"),
    "ror3_164": Row("RoR-3-164"),
    "ror3_110_sd": _sd("ror3_110", "RoR-3-110+SD"),
    "ror3_164_sd": _sd("ror3_164", "RoR-3-164+SD", 4.86, 22.47),
    "pre_ror3_164_sd": _sd("pre_ror3_164", "Pre-RoR-3-164+SD", 4.51, 21.94),
    "ror3_wrn40_4_sd": _sd("ror3_wrn40_4", "RoR-3-WRN40-4+SD", 4.09, 20.11),
    "ror3_wrn58_4_sd": _sd("ror3_wrn58_4", "RoR-3-WRN58-4+SD", 3.77, 19.73, 1.59),
}
