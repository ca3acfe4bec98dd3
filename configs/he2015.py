# SPDX-License-Identifier: Apache-2.0
"""He et al. 2015 on CIFAR-10: ResNets and plain networks, by the recipe of default.py.

Errors are of one run; that of ResNet-110 is the best of 5. Figure 6 shows curves of the
plain networks without numbers; plain110, above 60 %, is not drawn. ResNet-110, and here
ResNet-1202 as well, begins at a rate of 0.01 until its training error is below 80 %,
"about 400 iterations".

    python -m experiments.run --config=configs/resnet20.py[:DATASET]
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    return default.recipe(dataset)


_WARMUP = {"warmup_until_error": 80.0}

ROWS = {
    "plain20": Row("figure 6, left"),
    "plain32": Row("figure 6, left"),
    "plain44": Row("figure 6, left"),
    "plain56": Row("figure 6, left"),
    "plain110": Row("section 4.2"),
    "resnet20": Row("table 6", {"cifar10": 8.75}),
    "resnet32": Row("table 6", {"cifar10": 7.51}),
    "resnet44": Row("table 6", {"cifar10": 7.17}),
    "resnet56": Row("table 6", {"cifar10": 6.97}),
    "resnet110_he2015": Row(
        "table 6", {"cifar10": 6.43}, {"model": "resnet110", **_WARMUP}
    ),
    "resnet1202": Row("table 6", {"cifar10": 7.93}, _WARMUP),
}
