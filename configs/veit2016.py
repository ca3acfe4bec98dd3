# SPDX-License-Identifier: Apache-2.0
"""Veit et al. 2016, section 4.3: a network trained only on short paths, and as a whole.

From the first drop of the rate on, 23 of the 54 blocks, drawn for every mini-batch, are
open: the paths that receive gradient are as short as those that carry most of it in the
whole network. Unverified: the epoch in which this begins, and the test rule, which is
here that of stochastic depth (a branch is scaled by 23/54).

    python -m experiments.run --config=configs/preact_resnet110_short_paths.py
"""

from configs import Row, default, he2016
from rn_jax import data


def get_config(dataset="cifar10"):
    return default.recipe(dataset, he2016.get_config, paper="Veit et al. 2016")


def on_short_paths(dataset="cifar10"):
    config = get_config(dataset)
    config.stochastic_depth = {"num_open": 23, "schedule": "uniform"}
    config.stochastic_depth_from_epoch = round(_first_drop(config))
    return config


def _first_drop(config):
    """Return the epoch of the first drop, which depends on the length of epochs."""
    drop = config.lr_drops[0]
    if config.lr_drops_unit == "fraction":
        return drop * config.epochs
    examples = data.get_spec(config.dataset).num_train or 50_000
    return drop * config.batch_size / examples


_NETWORK = {"model": "preact_resnet110"}

ROWS = {
    "preact_resnet110_whole": Row("section 4.3", {"cifar10": 6.10}, _NETWORK),
    "preact_resnet110_short_paths": Row(
        "section 4.3", {"cifar10": 5.96}, _NETWORK, recipe=on_short_paths
    ),
}
