# SPDX-License-Identifier: Apache-2.0
"""The papers' tables: published errors as they are printed, and rows that build."""

import pytest
from test_configs import NAMES

from experiments.papers.entries import entries
from experiments.papers.tables import TABLES
from experiments.training import setup
from experiments.training.schedule import count_steps, make_schedule

# As the papers print them: row -> error by data set; None: "fail" or no number.
PUBLISHED = {
    "stochastic_depth": {
        "constant": (6.41, 27.22),
        "stochastic": (5.25, 24.98),
        "constant_svhn": (1.80,),
        "stochastic_svhn": (1.75,),
        "constant_1202": (6.67,),
        "stochastic_1202": (4.91,),
        "constant_not_augmented": (13.63, 44.74),
        "stochastic_not_augmented": (11.66, 37.8),
        "constant_imagenet": (21.78,),
        "stochastic_imagenet": (21.98,),
    },
    "resnet_cifar": {
        "resnet20": (8.75,),
        "resnet32": (7.51,),
        "resnet44": (7.17,),
        "resnet56": (6.97,),
        "resnet110": (6.43,),
        "resnet1202": (7.93,),
    },
    "preact_shortcuts": {
        "original": (6.61,),
        "scaling_0_1": (None,),
        "scaling_05_1": (None,),
        "scaling_05_05": (12.35,),
        "exclusive_gating_0": (None,),
        "exclusive_gating_6": (8.70,),
        "exclusive_gating_7": (9.81,),
        "shortcut_gating_0": (12.86,),
        "shortcut_gating_6": (6.91,),
        "conv_shortcut": (12.22,),
        "dropout_shortcut": (None,),
    },
    "preact_activations": {
        "original_110": (6.61,),
        "bn_after_addition_110": (8.17,),
        "relu_before_addition_110": (7.84,),
        "relu_only_110": (6.71,),
        "full_110": (6.37,),
        "original_164": (5.93,),
        "bn_after_addition_164": (6.50,),
        "relu_before_addition_164": (6.14,),
        "relu_only_164": (5.91,),
        "full_164": (5.46,),
    },
    "preact_depth": {
        "original_110": (6.61,),
        "full_110": (6.37,),
        "original_110_single_layer": (9.90,),
        "full_110_single_layer": (8.91,),
        "original_164": (5.93, 25.16),
        "full_164": (5.46, 24.33),
        "original_1001": (7.61, 27.82),
        "full_1001": (4.92, 22.71),
    },
    "densenet": {
        "40_12": (5.24, 24.42, 1.79),
        "100_12": (4.10, 20.20, 1.67),
        "100_24": (3.74, 19.25, 1.59),
        "bc100_12": (4.51, 22.27, 1.76),
        "bc250_24": (3.62, 17.60, 1.74),
        "bc190_40": (3.46, 17.18),
        "40_12_not_augmented": (7.00, 27.55),
        "100_12_not_augmented": (5.77, 23.79),
        "100_24_not_augmented": (5.83, 23.42),
        "bc100_12_not_augmented": (5.92, 24.15),
        "bc250_24_not_augmented": (5.19, 19.64),
        "preact_resnet1001": (4.92, 22.71),
    },
    "resnext_cifar": {
        "1x64d": (None, None),
        "2x64d": (None, None),
        "4x64d": (None, None),
        "1x128d": (None, None),
        "1x192d": (None, None),
        "8x64d": (3.65, 17.77),
        "16x64d": (3.58, 17.31),
    },
    "resnext_imagenet": {
        "resnext50_1x64d": (23.9,),
        "resnext50_2x40d": (23.0,),
        "resnext50_4x24d": (22.6,),
        "resnext50_8x14d": (22.3,),
        "resnext50_32x4d": (22.2,),
        "resnext101_1x64d": (22.0,),
        "resnext101_32x4d": (21.2,),
        "resnet200_xie2017": (21.7,),
        "resnext101_1x100d": (21.3,),
        "resnext101_2x64d": (20.7,),
        "resnext101_64x4d": (20.4,),
    },
    "ror": {
        "ror3_110": (None, None, None),
        "ror3_164": (None, None, None),
        "ror3_110_sd": (None, None, None),
        "ror3_164_sd": (4.86, 22.47),
        "pre_ror3_164_sd": (4.51, 21.94),
        "ror3_wrn40_4_sd": (4.09, 20.11),
        "ror3_wrn58_4_sd": (3.77, 19.73, 1.59),
    },
    "pyramidnet": {
        "110_48": (4.62, 23.31),
        "110_84": (4.27, 20.21),
        "110_270": (3.73, 18.25),
        "110_mul4_75": (4.62, 23.16),
        "110_mul8": (4.50, 20.94),
        "110_mul27": (4.06, 18.79),
        "164_48": (4.21, 19.52),
        "164_84": (3.96, 18.32),
        "164_270": (3.48, 17.01),
        "200_240": (3.44, 16.51),
        "236_220": (3.40, 16.37),
        "272_200": (3.31, 16.35),
    },
    "fractalnet": {
        "20": (5.22, 23.30),
        "20_drop_path": (4.60, 23.73),
        "20_not_augmented": (10.18, 35.34),
        "20_drop_path_not_augmented": (7.33, 28.20),
        "10_16": (None, None),
        "20_16": (None, None),
        "40_16": (None, None),
    },
    "inception_resnet_imagenet": {"inception_resnet_v2": (19.9,)},
    "swapout": {"swapout32_w4": (4.76, 22.72)},
    "branch_starts": {
        name: (None, None)
        for name in ("usual_start", "zero_gamma", "skip_init", "re_zero", "fixup")
    },
    "squeeze_excite": {"resnet110": (6.61,), "se_resnet110": (5.21,)},
    "squeeze_excite_imagenet": {
        "se_resnet50": (23.29,),
        "se_resnet101": (22.38,),
        "se_resnet152": (21.57,),
    },
    "highway": {"highway19": (7.54, 32.24)},
    # On digits no paper has a number, and every row that names them is trained on them.
    "highway_resnet": {
        "coupled": (7.54,),
        "independent": (None,),
        "open": (None,),
        "resnet20": (None,),
    },
    "highway_mnist": {
        "coupled": (None, None),
        "independent": (None, None),
        "open": (None, None),
    },
    "stochastic_depth_dropout": {
        "constant": (6.41, None),
        "expected": (None, None),
        "dropout": (None, None),
        "stochastic": (5.25, None),
        "uniform": (None, None),
    },
    "short_paths": {"whole": (6.10,), "short": (5.96,)},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_errors(name):
    found = {}
    for entry in entries(TABLES[name], None, None, [], 1):
        found[entry.row] = (*found.get(entry.row, ()), entry.published)
    assert found == PUBLISHED[name]


def test_rows_that_fail_in_the_paper():
    found = entries(TABLES["preact_shortcuts"], None, None, [], 1)
    assert {e.row for e in found if e.config.expected_to_fail} == {
        *("scaling_0_1", "scaling_05_1", "exclusive_gating_0", "dropout_shortcut")
    }


def test_every_config_is_a_row_or_no_row_of_a_paper():
    rows = {config for table in TABLES.values() for config in table.rows.values()}
    assert rows <= set(NAMES)
    assert set(NAMES) - rows == {
        *("highway50_mnist", "resnet200"),
        *("densenet_bc40_36", "densenet_bc40_48", "densenet_bc40_60"),
    }
    for table in TABLES.values():
        for pair in table.differences:
            assert set(pair) <= set(table.rows)


@pytest.mark.parametrize("name", TABLES)
def test_rows_can_be_built(name):
    """On their own data sets; on CIFAR-10 where that is ImageNet."""
    dataset = "cifar10" if name == "before_resnets" or "imagenet" in name else None
    for entry in entries(TABLES[name], None, dataset, [], 0.02):
        setup.check(entry.config)
        make_schedule(entry.config, 390, count_steps(entry.config, 390))


def test_protocols_number():
    """At the best validation epoch where a part is held out, else the last."""
    for name, error in [("stochastic_depth", "best_val"), ("densenet", "test_error_p")]:
        entry = entries(TABLES[name], None, "cifar10", [], 1)[0]
        assert error in entry.error
