# SPDX-License-Identifier: Apache-2.0
"""The papers' tables: the config of each row, and the rows that are compared.

The configs have the published errors: `published_error_percent`, and `expected_to_fail`
for a row that the paper prints as "fail".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from configs import (
    before_resnets,
    branch_starts,
    han2017,
    he2016,
    hu2017,
    huang2017,
    imagenet,
    larsson2017,
    shen2016,
    szegedy2017,
    xie2017,
    yamada2018,
    zagoruyko2016,
    zhang2016,
)


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        title: paper and number of the table.
        rows: names of configs, by name of the row.
        datasets: columns of the table. A row is trained on those for which its paper
            has a number, or on all of them if it has none; and on digits, if named.
        statistic: the paper's statistic of its runs: "mean" (also of one), "median" or
            "best".
        published_of: number of runs of the published number, and how they were tested
            if not on single whole images.
        differences: pairs of rows (a, b) whose difference a - b is reported.
    """

    title: str
    rows: Mapping[str, str]
    datasets: tuple[str, ...] = ("cifar10",)
    statistic: str = "mean"
    published_of: str = "1 run"
    differences: tuple[tuple[str, str], ...] = ()


def _rows(*names: str) -> dict[str, str]:
    """Return rows whose configs have the same names."""
    return {name: name for name in names}


def _of(paper: ModuleType, where: str = "", prefix: str = "") -> dict[str, str]:
    """Return the rows of configs/PAPER.py from some tables; the prefix is dropped."""
    return {
        name.removeprefix(prefix).lstrip("_"): name
        for name, row in paper.ROWS.items()
        if where in row.where and name.startswith(prefix)
    }


_CIFAR = ("cifar10", "cifar100")
_IMAGENET = ("imagenet2012",)

TABLES: Mapping[str, Table] = {
    "stochastic_depth": Table(
        "Huang et al. 2016, table 1 and section 4: constant depth and stochastic depth",
        {
            "constant": "resnet110",
            "stochastic": "resnet110_sd",
            "constant_not_augmented": "resnet110_not_augmented",
            "stochastic_not_augmented": "resnet110_sd_not_augmented",
            "constant_svhn": "resnet152_svhn",
            "stochastic_svhn": "resnet152_svhn_sd",
            "constant_imagenet": "resnet152_imagenet",
            "stochastic_imagenet": "resnet152_imagenet_sd",
            "constant_1202": "resnet1202_constant",
            "stochastic_1202": "resnet1202_sd",
        },
        datasets=(*_CIFAR, "svhn_cropped", *_IMAGENET),
        differences=(
            ("stochastic", "constant"),
            ("stochastic_not_augmented", "constant_not_augmented"),
            ("stochastic_svhn", "constant_svhn"),
            ("stochastic_imagenet", "constant_imagenet"),
            ("stochastic_1202", "constant_1202"),
        ),
    ),
    "stochastic_depth_dropout": Table(
        "Not from a paper: stochastic depth and Dropout at equal expected depth",
        {
            "constant": "resnet110",
            "expected": "resnet82",
            "dropout": "resnet110_dropout",
            "stochastic": "resnet110_sd",
            "uniform": "resnet110_sd_uniform",
        },
        datasets=("cifar10", "digits"),
        published_of="1 run, of constant and stochastic",
        differences=(
            ("dropout", "constant"),
            ("stochastic", "dropout"),
            ("uniform", "dropout"),
            ("stochastic", "expected"),
        ),
    ),
    "resnet_cifar": Table(
        "He et al. 2015, table 6: ResNets on CIFAR-10",
        {
            **_rows("resnet20", "resnet32", "resnet44", "resnet56"),
            "resnet110": "resnet110_he2015",
            "resnet1202": "resnet1202",
        },
        statistic="best",
        published_of="best of 5 runs for ResNet-110 (6.61 ± 0.16)",
    ),
    "degradation": Table(
        "He et al. 2015, figure 6: plain networks beside ResNets on CIFAR-10",
        _rows(
            *("plain20", "plain32", "plain44", "plain56", "plain110"),
            *("resnet20", "resnet56"),
        ),
        published_of="1 run; plain networks only in a figure",
        differences=(
            *(("plain56", "plain20"), ("resnet56", "resnet20")),
            *(("resnet20", "plain20"), ("resnet56", "plain56")),
        ),
    ),
    "digits": Table(
        "Not from a paper: plain, residual and stochastic-depth networks on digits",
        _rows(
            *("plain20", "resnet20", "plain110", "resnet110_he2015"),
            *("resnet110", "resnet110_sd"),
        ),
        datasets=("digits",),
        published_of="none",
        differences=(("plain110", "resnet110_he2015"), ("resnet110_sd", "resnet110")),
    ),
    "units": Table(
        "Not from a paper: units of He et al. 2016, and short paths, on digits",
        {
            "single_layer": "resnet110_single_layer",
            "bn_after_addition": "resnet110_bn_after_addition",
            "relu_before_addition": "resnet110_relu_before_addition",
            "relu_only": "resnet110_relu_only_preact",
            "scaling": "resnet110_scaling_05_05",
            "exclusive_gating": "resnet110_exclusive_gating_6",
            "shortcut_gating": "resnet110_shortcut_gating_6",
            "conv_shortcut": "resnet110_conv_shortcut",
            "dropout_shortcut": "resnet110_dropout_shortcut",
            "short_paths": "preact_resnet110_short_paths",
        },
        datasets=("digits",),
        published_of="none",
    ),
    "large_gradients": Table(
        "Not from a paper: plain-110 with steps of bounded size, on digits",
        {
            "plain": "plain110",
            "plain_clipped": "plain110_clipped",
            "plain_adamw": "plain110_adamw",
            "residual_clipped": "resnet110_clipped",
            "residual_adamw": "resnet110_adamw",
        },
        datasets=("digits",),
        published_of="none",
        differences=(
            ("plain_clipped", "plain"),
            ("plain_adamw", "plain"),
            ("plain_clipped", "residual_clipped"),
            ("plain_adamw", "residual_adamw"),
        ),
    ),
    "short_cifar": Table(
        "Not from a paper: degradation on CIFAR-10 in 1,000 steps",
        {
            "plain20": "plain20_short",
            "plain56": "plain56_short",
            "resnet20": "resnet20_short",
            "resnet56": "resnet56_short",
        },
        published_of="none",
        differences=(("plain56", "plain20"), ("resnet56", "resnet20")),
    ),
    "few_images": Table(
        "Not from a paper: stochastic depth on 5,000 images of CIFAR-10, not augmented",
        {"constant": "resnet32_few_images", "stochastic": "resnet32_sd_few_images"},
        published_of="none",
        differences=(("stochastic", "constant"),),
    ),
    "ensembles": Table(
        "Not from a paper: kinds of networks that Veit et al. 2016 and Huang et al. "
        "2017 study, on digits",
        _rows("preact_resnet110", "vgg15", "densenet40_12"),
        datasets=("digits",),
        published_of="none",
    ),
    "preact_shortcuts": Table(
        "He et al. 2016, table 1: shortcuts of ResNet-110 on CIFAR-10",
        {"original": "resnet110_he2016", **_of(he2016, "table 1", "resnet110_")},
        statistic="median",
        published_of="median of 5 runs",
    ),
    "preact_activations": Table(
        "He et al. 2016, table 2: positions of the activation on CIFAR-10",
        {
            "original_110": "resnet110_he2016",
            "bn_after_addition_110": "resnet110_bn_after_addition",
            "relu_before_addition_110": "resnet110_relu_before_addition",
            "relu_only_110": "resnet110_relu_only_preact",
            "full_110": "preact_resnet110",
            "original_164": "resnet164",
            "bn_after_addition_164": "resnet164_bn_after_addition",
            "relu_before_addition_164": "resnet164_relu_before_addition",
            "relu_only_164": "resnet164_relu_only_preact",
            "full_164": "preact_resnet164",
        },
        statistic="median",
        published_of="median of 5 runs",
        differences=(("full_110", "original_110"), ("full_164", "original_164")),
    ),
    "preact_depth": Table(
        "He et al. 2016, table 3: original and pre-activation units on CIFAR",
        {
            "original_110": "resnet110_he2016",
            "full_110": "preact_resnet110",
            "original_110_single_layer": "resnet110_single_layer",
            "full_110_single_layer": "preact_resnet110_single_layer",
            "original_164": "resnet164",
            "full_164": "preact_resnet164",
            "original_1001": "resnet1001",
            "full_1001": "preact_resnet1001",
        },
        datasets=_CIFAR,
        statistic="median",
        published_of="median of 5 runs",
        differences=(
            ("full_110", "original_110"),
            ("original_110_single_layer", "original_110"),
            ("full_110_single_layer", "full_110"),
            ("full_164", "original_164"),
            ("full_1001", "original_1001"),
        ),
    ),
    "densenet": Table(
        "Huang et al. 2017, table 2: DenseNets on CIFAR and SVHN",
        {
            **_of(huang2017, "table 2", "densenet"),
            "preact_resnet1001": "preact_resnet1001",
        },
        datasets=(*_CIFAR, "svhn_cropped"),
        published_of="1 run; median of 5 of preact_resnet1001, by He et al. 2016",
        differences=(("bc100_12", "preact_resnet1001"),),
    ),
    "resnext_cifar": Table(
        "Xie et al. 2017, table 7 and figure 7: ResNeXt-29 on CIFAR",
        _of(xie2017, prefix="resnext29_"),
        datasets=_CIFAR,
        published_of="mean of 10 runs",
        # More groups, or wider ones with more parameters.
        differences=(("2x64d", "1x128d"), ("4x64d", "1x192d")),
    ),
    "wide_resnet": Table(
        "Zagoruyko and Komodakis 2016: wide ResNets on CIFAR",
        _of(zagoruyko2016, prefix="wrn"),
        datasets=_CIFAR,
        published_of="no published number available",
    ),
    "ror": Table(
        "Zhang et al. 2016: residual networks of residual networks on CIFAR and SVHN",
        _of(zhang2016),
        datasets=(*_CIFAR, "svhn_cropped"),
        published_of="number of runs not available",
        differences=(("ror3_110", "ror3_110_sd"), ("ror3_164", "ror3_164_sd")),
    ),
    "pyramidnet": Table(
        "Han et al. 2017, the authors' code: PyramidNets on CIFAR",
        _of(han2017, prefix="pyramidnet"),
        datasets=_CIFAR,
        published_of="number of runs not stated",
    ),
    "shakedrop": Table(
        "Yamada et al. 2018: PyramidNet with ShakeDrop on CIFAR",
        _of(yamada2018),
        datasets=_CIFAR,
        published_of="no published number of these gates available",
    ),
    "weighted_residuals": Table(
        "Shen et al. 2016: a weighted residual network on CIFAR-10",
        _of(shen2016),
        published_of="no published number at this depth available",
    ),
    "fractalnet": Table(
        "Larsson et al. 2017, tables 1 and 3: FractalNets on CIFAR",
        _of(larsson2017, prefix="fractalnet"),
        datasets=_CIFAR,
        published_of="1 run; none for the narrow networks of table 3",
    ),
    "inception_resnet_imagenet": Table(
        "Szegedy et al. 2017, table 2: Inception-ResNet-v2 on ImageNet",
        _of(szegedy2017),
        datasets=_IMAGENET,
        published_of="1 run, one crop, without 1,700 images",
    ),
    "swapout": Table(
        "Singh et al. 2016, table 4: Swapout on CIFAR",
        _rows("swapout32_w4"),
        datasets=_CIFAR,
        published_of="1 run, the mean prediction of 30 samples; ours: the test rule",
    ),
    "branch_starts": Table(
        "Not from a paper: how the branches of ResNet-110 begin",
        _of(branch_starts, prefix="resnet110_"),
        datasets=("cifar10", "digits"),
        published_of="none",
        differences=tuple(
            (start, "usual_start")
            for start in ("zero_gamma", "skip_init", "re_zero", "fixup")
        ),
    ),
    "squeeze_excite": Table(
        "Hu et al. 2017: squeeze-and-excitation on CIFAR-10",
        {"resnet110": "resnet110_he2016", **_of(hu2017, "CIFAR-10")},
        published_of="median of 5 runs of ResNet-110; not stated for SE-ResNet-110",
        differences=(("se_resnet110", "resnet110"),),
    ),
    "squeeze_excite_imagenet": Table(
        "Hu et al. 2017, table 2: squeeze-and-excitation on ImageNet",
        _of(hu2017, "table 2"),
        datasets=_IMAGENET,
        published_of="1 run, a crop of 224",
    ),
    "highway": Table(
        "Srivastava et al. 2015: the highway network of 19 layers on CIFAR",
        _rows("highway19"),
        datasets=_CIFAR,
        statistic="best",
        published_of="best of several runs on CIFAR-10 (mean 7.72)",
    ),
    "highway_resnet": Table(
        "Not from a paper: highway networks and residual networks by one recipe",
        {
            "coupled": "highway19",
            "independent": "highway19_independent",
            "open": "highway19_open",
            "resnet20": "resnet20_46",
        },
        published_of="best of several runs, of highway19 alone",
        differences=(
            ("coupled", "open"),
            ("independent", "open"),
            ("coupled", "resnet20"),
        ),
    ),
    "highway_mnist": Table(
        "Not from a paper: fully connected highway networks and residual networks",
        {
            "coupled": "highway10_mnist",
            "independent": "highway10_mnist_independent",
            "open": "highway10_mnist_open",
        },
        datasets=("mnist", "digits"),
        published_of="none",
        differences=(("coupled", "open"), ("independent", "open")),
    ),
    "short_paths": Table(
        "Veit et al. 2016: training on short paths only",
        {"whole": "preact_resnet110_whole", "short": "preact_resnet110_short_paths"},
        differences=(("short", "whole"),),
    ),
    "resnet_imagenet": Table(
        "He et al. 2015, tables 2 and 3: plain networks and ResNets on ImageNet",
        _of(imagenet),
        datasets=_IMAGENET,
        published_of="1 run, 10 crops; ours: one centre crop",
    ),
    "max_pool": Table(
        "Not from a paper: plain networks with strides and with max-pooling",
        _rows("plain18", "plain18_max_pool", "plain34", "plain34_max_pool"),
        datasets=_IMAGENET,
        published_of="1 run, 10 crops, with strides alone; ours: one centre crop",
        differences=(("plain18_max_pool", "plain18"), ("plain34_max_pool", "plain34")),
    ),
    "preact_imagenet": Table(
        "He et al. 2016, table 5: pre-activation ResNets on ImageNet",
        _rows("preact_resnet152", "preact_resnet200"),
        datasets=_IMAGENET,
        published_of="1 run, a crop of 320",
    ),
    "resnext_imagenet": Table(
        "Xie et al. 2017, tables 3 and 4: ResNeXt on ImageNet",
        {**_of(xie2017, "table 3"), **_of(xie2017, "table 4")},
        datasets=_IMAGENET,
        published_of="1 run, a crop of 224",
        # Twice the work by more groups, by more layers or by more channels.
        differences=(
            ("resnext101_2x64d", "resnet200_xie2017"),
            ("resnext101_2x64d", "resnext101_1x100d"),
            ("resnext101_64x4d", "resnext101_2x64d"),
        ),
    ),
    "densenet_imagenet": Table(
        "Huang et al. 2017, table 3, and (161) the authors' code: DenseNets",
        {**_of(huang2017, "table 3"), **_rows("densenet161")},
        datasets=_IMAGENET,
        published_of="1 run, a crop of 224",
    ),
    "before_resnets": Table(
        "Krizhevsky et al. 2012, Szegedy et al. 2015, Simonyan and Zisserman 2015",
        _of(before_resnets),
        datasets=_IMAGENET,
        published_of="1 run, tested as each config says; ours: one centre crop",
    ),
}

# What `experiments.reproduce --budget` trains, the most important first: tables, their
# rows, and fractions of the schedule's length. At the H200's 18 ms a step, a fifth of
# 500 epochs of ResNet-110 takes ten minutes.
NEXT: Sequence[tuple[str, str, float]] = (
    ("resnet_cifar", "resnet32", 1.0),
    ("degradation", "resnet56,plain56", 1.0),
    ("stochastic_depth", "stochastic,constant", 0.2),
    ("preact_depth", "full_164", 1.0),
    ("densenet", "bc100_12", 1.0),
)
NEXT_DATASET = "cifar10"
