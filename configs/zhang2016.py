# SPDX-License-Identifier: Apache-2.0
"""Zhang et al. 2016: residual networks of residual networks on CIFAR and SVHN.

The abstract of the paper (1608.02908) has the errors of RoR-3-WRN58-4+SD. The rest
comes from secondary sources, since we have not read the paper beyond its abstract: the
other errors from a review (S.-H. Tsang, "RoR: ResNet of ResNet"), and the recipe, that
of Huang et al. 2016 on all training images, from the repository
nutszebra/residual_networks_of_residual_networks. +SD is stochastic depth with
p_L = 0.5. Pixels are normalised by channel, which is our choice. Networks without
stochastic depth are here for comparison, without published errors.

    python -m experiments.run --config=configs/ror3_164_sd.py[:DATASET]
"""

from configs import Row, default, huang2016


def get_config(dataset="cifar10"):
    on_svhn = dataset == "svhn_cropped"
    return default.recipe(
        dataset,
        huang2016.on_svhn if on_svhn else huang2016.get_config,
        protocol="full",
        eval_every_steps=0,
        normalization="channel",
        paper="Zhang et al. 2016",
    )


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
