# SPDX-License-Identifier: Apache-2.0
"""How residual branches begin: four ways, at 110 layers by one recipe.

They are those of Goyal et al. 2017, De and Smith 2020, Bachlechner et al. 2020 and
Zhang et al. 2019 (Fixup), see rn_jax/models/starts.py. The recipe is that of He et al.
2015 without warm-up, because all blocks are close to their shortcuts at first. With
Fixup, which has no BatchNorm, the rate of the biases is a tenth, as in the authors'
code; its multipliers have the full rate here. The papers' own experiments have other
recipes, so no number of theirs stands beside these.

    python -m experiments.run --config=configs/resnet110_fixup.py[:DATASET]
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    return default.recipe(dataset, paper="after Zhang et al. 2019")


ROWS = {
    "resnet110_zero_gamma": Row("zero-gamma"),
    "resnet110_skip_init": Row("SkipInit"),
    "resnet110_re_zero": Row("ReZero"),
    "resnet110_fixup": Row("Fixup", fields={"bias_rate": 0.1}),
}
