# SPDX-License-Identifier: Apache-2.0
"""How residual branches begin: as usual and in four other ways, at 110 layers.

rn_jax/models/starts.py describes the four. The recipe is that of He et al. 2015 without
warm-up, which blocks that begin as their shortcuts do not need. With Fixup, the rate of
the biases is a tenth, as in the authors' code; its multipliers have the full rate here.
The papers' own experiments have other recipes, so none of their numbers is comparable.

    python -m experiments.run --config=configs/resnet110_fixup.py[:DATASET]
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    return default.recipe(dataset)


def _row(where, paper, **fields):
    return Row(where, fields={"paper": paper, **fields})


ROWS = {
    "resnet110_usual_start": Row("no warm-up", fields={"model": "resnet110"}),
    "resnet110_zero_gamma": _row("zero-gamma", "after Goyal et al. 2017"),
    "resnet110_skip_init": _row("SkipInit", "after De and Smith 2020"),
    "resnet110_re_zero": _row("ReZero", "after Bachlechner et al. 2020"),
    "resnet110_fixup": _row("Fixup", "after Zhang et al. 2019", bias_rate=0.1),
}
