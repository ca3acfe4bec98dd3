# SPDX-License-Identifier: Apache-2.0
"""The papers' tables: which config, data set and overrides each row is.

The published errors are those of the configs (`published_error_percent`, and
`expected_to_fail` for a row that the paper prints as "fail"). Where a table has another
number for the same network, its row says so among the overrides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_BOTH = ("cifar10", "cifar100")


@dataclass(frozen=True)
class Row:
    """A network of a table, trained on one data set or several.

    Attributes:
        config: name of the file in configs/.
        datasets: in whose columns the paper has it.
        overrides: fields, or their entries, that the row has otherwise.
    """

    config: str
    datasets: tuple[str, ...] = ("cifar10",)
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        title: paper and number of the table.
        rows: by name.
        statistic: what the paper prints of its runs: "mean" (also of one), "median" or
            "best".
        published_of: how many runs the published number is of, and how they were tested
            where that is not by the single whole image.
        differences: pairs of rows (a, b) of which a minus b is told.
    """

    title: str
    rows: Mapping[str, Row]
    statistic: str = "mean"
    published_of: str = "1 run"
    differences: tuple[tuple[str, str], ...] = ()


def _imagenet(*configs: str) -> dict[str, Row]:
    return {config: Row(config, ("imagenet2012",)) for config in configs}


def _not_augmented(config: str, cifar10: float, cifar100: float) -> Row:
    """DenseNet's columns C10 and C100, where dropout comes in."""
    published = {"cifar10": cifar10, "cifar100": cifar100}
    return Row(
        config,
        _BOTH,
        {
            "augment": False,
            "model_kwargs": {"dropout": 0.2},
            "published_error_percent": published,
        },
    )


_DENSENET = (*_BOTH, "svhn_cropped")
_ORIGINAL_110 = Row("resnet110_he2016")

TABLES: Mapping[str, Table] = {
    "stochastic_depth": Table(
        "Huang et al. 2016, table 1 and section 4: constant depth and stochastic depth",
        {
            "constant": Row("resnet110", _BOTH),
            "stochastic": Row("resnet110_sd", _BOTH),
            "constant_not_augmented": Row(
                "resnet110",
                _BOTH,
                {
                    "augment": False,
                    "published_error_percent": {"cifar10": 13.63, "cifar100": 44.74},
                },
            ),
            "stochastic_not_augmented": Row(
                "resnet110_sd",
                _BOTH,
                {
                    "augment": False,
                    "published_error_percent": {"cifar10": 11.66, "cifar100": 37.8},
                },
            ),
            "constant_svhn": Row("resnet152_svhn", ("svhn_cropped",)),
            "stochastic_svhn": Row("resnet152_svhn_sd", ("svhn_cropped",)),
            "constant_imagenet": Row(
                "resnet152_imagenet_sd",
                ("imagenet2012",),
                {
                    "stochastic_depth": None,
                    "published_error_percent": {"imagenet2012": 21.78},
                },
            ),
            "stochastic_imagenet": Row("resnet152_imagenet_sd", ("imagenet2012",)),
            "constant_1202": Row(
                "resnet1202_sd",
                overrides={
                    "stochastic_depth": None,
                    "published_error_percent": {"cifar10": 6.67},
                },
            ),
            "stochastic_1202": Row("resnet1202_sd"),
        },
        differences=(
            ("stochastic", "constant"),
            ("stochastic_not_augmented", "constant_not_augmented"),
            ("stochastic_svhn", "constant_svhn"),
            ("stochastic_imagenet", "constant_imagenet"),
            ("stochastic_1202", "constant_1202"),
        ),
    ),
    "resnet_cifar": Table(
        "He et al. 2015, table 6: ResNets on CIFAR-10",
        {
            "resnet20": Row("resnet20"),
            "resnet32": Row("resnet32"),
            "resnet44": Row("resnet44"),
            "resnet56": Row("resnet56"),
            "resnet110": Row("resnet110_he2015"),
            "resnet1202": Row("resnet1202"),
        },
        statistic="best",
        published_of="best of 5 runs for ResNet-110 (6.61 ± 0.16)",
    ),
    "degradation": Table(
        "He et al. 2015, figure 6: plain networks beside ResNets on CIFAR-10",
        {
            "plain20": Row("plain20"),
            "plain32": Row("plain32"),
            "plain44": Row("plain44"),
            "plain56": Row("plain56"),
            "plain110": Row("plain110"),
            "resnet20": Row("resnet20"),
            "resnet56": Row("resnet56"),
        },
        published_of="1 run; plain networks are in a figure",
        differences=(
            *(("plain56", "plain20"), ("resnet56", "resnet20")),
            *(("resnet20", "plain20"), ("resnet56", "plain56")),
        ),
    ),
    "digits": Table(
        "In no paper: deep networks on digits, plain, residual, with stochastic depth",
        {
            name: Row(name, ("digits",))
            for name in ("plain20", "resnet20", "plain110", "resnet110", "resnet110_sd")
        },
        published_of="none",
        differences=(("plain110", "resnet110"), ("resnet110_sd", "resnet110")),
    ),
    "preact_shortcuts": Table(
        "He et al. 2016, table 1: shortcuts of ResNet-110 on CIFAR-10",
        {
            "original": _ORIGINAL_110,
            "scaling_0_1": Row("resnet110_scaling_0_1"),
            "scaling_05_1": Row("resnet110_scaling_05_1"),
            "scaling_05_05": Row("resnet110_scaling_05_05"),
            "exclusive_gating_0": Row("resnet110_exclusive_gating_0"),
            "exclusive_gating_6": Row("resnet110_exclusive_gating_6"),
            "exclusive_gating_7": Row("resnet110_exclusive_gating_7"),
            "shortcut_gating_0": Row("resnet110_shortcut_gating_0"),
            "shortcut_gating_6": Row("resnet110_shortcut_gating_6"),
            "conv_shortcut": Row("resnet110_conv_shortcut"),
            "dropout_shortcut": Row("resnet110_dropout_shortcut"),
        },
        statistic="median",
        published_of="median of 5 runs",
    ),
    "preact_activations": Table(
        "He et al. 2016, table 2: places of the activation on CIFAR-10",
        {
            "original_110": _ORIGINAL_110,
            "bn_after_addition_110": Row("resnet110_bn_after_addition"),
            "relu_before_addition_110": Row("resnet110_relu_before_addition"),
            "relu_only_110": Row("resnet110_relu_only_preact"),
            "full_110": Row("preact_resnet110"),
            "original_164": Row("resnet164"),
            "bn_after_addition_164": Row("resnet164_bn_after_addition"),
            "relu_before_addition_164": Row("resnet164_relu_before_addition"),
            "relu_only_164": Row("resnet164_relu_only_preact"),
            "full_164": Row("preact_resnet164"),
        },
        statistic="median",
        published_of="median of 5 runs",
        differences=(("full_110", "original_110"), ("full_164", "original_164")),
    ),
    "preact_depth": Table(
        "He et al. 2016, table 3: original and pre-activation units on CIFAR",
        {
            "original_110": _ORIGINAL_110,
            "full_110": Row("preact_resnet110"),
            "original_164": Row("resnet164", _BOTH),
            "full_164": Row("preact_resnet164", _BOTH),
            "original_1001": Row("resnet1001", _BOTH),
            "full_1001": Row("preact_resnet1001", _BOTH),
        },
        statistic="median",
        published_of="median of 5 runs",
        differences=(
            ("full_110", "original_110"),
            ("full_164", "original_164"),
            ("full_1001", "original_1001"),
        ),
    ),
    "densenet": Table(
        "Huang et al. 2017, table 2: DenseNets on CIFAR and SVHN",
        {
            "40_12": Row("densenet40_12", _DENSENET),
            "100_12": Row("densenet100_12", _DENSENET),
            "100_24": Row("densenet100_24", _DENSENET),
            "bc100_12": Row("densenet_bc100_12", _DENSENET),
            "bc250_24": Row("densenet_bc250_24", _DENSENET),
            "bc190_40": Row("densenet_bc190_40", _BOTH),
            "40_12_not_augmented": _not_augmented("densenet40_12", 7.00, 27.55),
            "100_12_not_augmented": _not_augmented("densenet100_12", 5.77, 23.79),
            "100_24_not_augmented": _not_augmented("densenet100_24", 5.83, 23.42),
            "bc100_12_not_augmented": _not_augmented("densenet_bc100_12", 5.92, 24.15),
            "bc250_24_not_augmented": _not_augmented("densenet_bc250_24", 5.19, 19.64),
        },
    ),
    "resnext_cifar": Table(
        "Xie et al. 2017, table 7: ResNeXt-29 on CIFAR",
        {
            "1x64d": Row("resnext29_1x64d", _BOTH),
            "8x64d": Row("resnext29_8x64d", _BOTH),
            "16x64d": Row("resnext29_16x64d", _BOTH),
        },
        published_of="mean of 10 runs",
    ),
    "wide_resnet": Table(
        "Zagoruyko and Komodakis 2016: wide ResNets on CIFAR",
        {
            "16_8": Row("wrn16_8", _BOTH),
            "40_4": Row("wrn40_4", _BOTH),
            "28_10": Row("wrn28_10", _BOTH),
            "28_10_dropout": Row("wrn28_10_dropout", _BOTH),
        },
        published_of="no published number at hand",
    ),
    "highway": Table(
        "Srivastava et al. 2015: the highway network of 19 layers on CIFAR",
        {"highway19": Row("highway19", _BOTH)},
        statistic="best",
        published_of="best of several runs on CIFAR-10 (mean 7.72)",
    ),
    "short_paths": Table(
        "Veit et al. 2016: training on short paths alone",
        {
            "whole": Row(
                "preact_resnet110",
                overrides={"published_error_percent": {"cifar10": 6.10}},
            ),
            "short": Row("preact_resnet110_short_paths"),
        },
        differences=(("short", "whole"),),
    ),
    "resnet_imagenet": Table(
        "He et al. 2015, tables 2 and 3: plain networks and ResNets on ImageNet",
        _imagenet(
            *("plain18", "plain34", "resnet18", "resnet34_a", "resnet34_b"),
            *("resnet34_c", "resnet50", "resnet101", "resnet152"),
        ),
        published_of="1 run, 10 crops; ours: one crop in the centre",
    ),
    "preact_imagenet": Table(
        "He et al. 2016, table 5: pre-activation ResNets on ImageNet",
        _imagenet("preact_resnet152", "preact_resnet200"),
        published_of="1 run, a crop of 320",
    ),
    "resnext_imagenet": Table(
        "Xie et al. 2017, tables 3 and 4: ResNeXt on ImageNet",
        _imagenet(
            *("resnext50_1x64d", "resnext50_2x40d", "resnext50_4x24d"),
            *("resnext50_8x14d", "resnext50_32x4d", "resnext101_32x4d"),
            *("resnext101_2x64d", "resnext101_64x4d"),
        ),
        published_of="1 run, a crop of 224",
    ),
    "densenet_imagenet": Table(
        "Huang et al. 2017, table 3, and (161) the authors' code: DenseNets",
        _imagenet(
            *("densenet121", "densenet169", "densenet201", "densenet264"),
            "densenet161",
        ),
        published_of="1 run, a crop of 224",
    ),
    "before_resnets": Table(
        "Krizhevsky et al. 2012, Szegedy et al. 2015, Simonyan and Zisserman 2015",
        _imagenet("alexnet_2012", "googlenet_2014", "vgg11", "vgg13", "vgg16", "vgg19"),
        published_of="1 run, as each config says; ours: one crop in the centre",
    ),
}
