# SPDX-License-Identifier: Apache-2.0
"""Larsson et al. 2017: FractalNet on CIFAR (tables 1 and 3).

Errors are those of the whole network. Trained with drop-path and dropout, the deepest
column alone has 7.27 % on CIFAR-10 and 29.05 % on CIFAR-100, and with augmentation 4.68
and 24.32 %. The networks of table 3 have errors with a stronger augmentation only,
which is not described. The rate is divided by 10 whenever the number of remaining
epochs halves, here four times. There is no weight decay, because none is known, and
pixels are normalised by channel. Secondary sources: the repository khanrc/pt.fractalnet
for the errors; a page that quotes the paper's experiments (ri.k117.org) for length,
rate, batch size, momentum and both drop rates. Filters are from the authors' code.

    python -m experiments.run --config=configs/fractalnet20_drop_path.py[:DATASET]
"""

from configs import Row, default


def get_config(dataset="cifar10"):
    return default.recipe(
        dataset,
        normalization="channel",
        epochs=400,
        batch_size=100,
        learning_rate=0.02,
        lr_drops=(200, 300, 350, 375),
        lr_drops_unit="epochs",
        weight_decay=0.0,
        bias_rate=2.0,
        paper="Larsson et al. 2017",
    )


_DROPS = {"drop_path": 0.15, "dropout": (0.0, 0.1, 0.2, 0.3, 0.4)}


def _table_1(cifar10, cifar100, drops=None, **fields):
    if drops:
        fields["model_kwargs"] = drops
    published = {"cifar10": cifar10, "cifar100": cifar100}
    return Row("table 1", published, {"model": "fractalnet20", **fields})


ROWS = {
    "fractalnet20": Row("table 1", {"cifar10": 5.22, "cifar100": 23.30}),
    "fractalnet20_drop_path": _table_1(4.60, 23.73, _DROPS),
    "fractalnet20_not_augmented": _table_1(10.18, 35.34, augment=False),
    "fractalnet20_drop_path_not_augmented": _table_1(
        7.33, 28.20, _DROPS, augment=False
    ),
    "fractalnet10_16": Row("table 3"),
    "fractalnet20_16": Row("table 3"),
    "fractalnet40_16": Row("table 3"),
}
