# SPDX-License-Identifier: Apache-2.0
"""The table of networks, by the names of their papers."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rn_jax.errors import InputError, unknown_name
from rn_jax.models.alexnet import AlexNet
from rn_jax.models.densenet import DenseNet, build_densenet
from rn_jax.models.googlenet import GoogLeNet
from rn_jax.models.highway import HighwayMLP, HighwayNet
from rn_jax.models.network import Network
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.preact import (
    BatchNormAfterAddition,
    ConstantScaling,
    DropoutShortcut,
    ExclusiveGating,
    FullPreactivation,
    ReluBeforeAddition,
    ReluOnlyPreactivation,
    ShortcutOnlyGating,
)
from rn_jax.models.resnet import Bottleneck, PlainLayer, ResNet
from rn_jax.models.resnext import build_resnext
from rn_jax.models.vgg import VGG


@dataclass(frozen=True)
class ModelEntry:
    """One row of the table.

    Attributes:
        build: called with `arguments` and the user's own, gives the network.
        arguments: what makes this network of its family.
        paper: where it comes from.
        params: exact number of parameters with `num_classes` classes.
        num_classes: of the paper's data set.
        image_size: side of the paper's images in pixels.
        channels: of the paper's images.
        expected_to_fail: it does not train in the paper.
    """

    build: Callable[..., Network]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    params: int | None = None
    num_classes: int = 10
    image_size: int = 32
    channels: int = 3
    expected_to_fail: bool = False


MODELS: dict[str, ModelEntry] = {}


def _add(names, build, arguments, paper, **facts):
    """Rows of a table: name -> (parameters, arguments of its own)."""
    for name, (params, own) in names.items():
        MODELS[name] = ModelEntry(build, {**arguments, **own}, paper, params, **facts)


def _sections(depth, layers):
    """Three equal stages of a CIFAR network with blocks of so many layers."""
    return {"stage_sizes": ((depth - 2) // (3 * layers),) * 3}


class _BatchNorm(BatchNorm):
    """BatchNorm with the epsilon of Keras, and of GoogLeNet in torchvision.

    It is a class because a pickled partial does not come back equal.
    """

    epsilon: float = 1e-3


# --- He et al. 2015 -------------------------------------------------------------------

_HE_2015 = "He et al. 2015"

# Shortcut A has no parameters, so a plain net is of the size of the residual one.
for _depth, _params in (
    (20, 269_722),
    (32, 464_154),
    (44, 658_586),
    (56, 853_018),
    (110, 1_727_962),
    (1202, 19_421_274),
):
    _own = _sections(_depth, 2)
    _add({f"resnet{_depth}": (_params, _own)}, ResNet, {}, _HE_2015)
    _own = {**_sections(_depth, 1), "block": PlainLayer, "shortcut": None}
    # The paper has plain networks of up to 110 layers.
    _paper = _HE_2015 if _depth <= 110 else f"after {_HE_2015}"
    _add({f"plain{_depth}": (_params, _own)}, ResNet, {}, _paper)

# ImageNet's ResNet-152 has the name that its depth would give.
_add(
    {"resnet152_svhn": (2_408_474, {**_sections(152, 2), "shortcut": "A_pooled"})},
    ResNet,
    {},
    "Huang et al. 2016",
)

_CIFAR_BOTTLENECK = {"features": (64, 128, 256), "stem_features": 16, "shortcut": "B"}

_add(
    {
        "resnet164": (1_704_154, _sections(164, 3)),
        "resnet1001": (10_328_602, _sections(1001, 3)),
    },
    ResNet,
    {
        **_CIFAR_BOTTLENECK,
        "block": Bottleneck,
        "block_kwargs": {"stride_on": "1x1"},
    },
    "He et al. 2016, original units",
)

_IMAGENET = {"num_classes": 1000, "image_size": 224}
_IMAGENET_BASIC = {"stem": "imagenet", "features": (64, 128, 256, 512)}
_IMAGENET_BOTTLENECK = {
    "stem": "imagenet",
    "features": (256, 512, 1024, 2048),
    "stem_features": 64,
    "shortcut": "B",
}
_50, _101, _152, _200 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3)

_add(
    {
        "resnet18": (11_689_512, {"stage_sizes": (2, 2, 2, 2)}),
        "resnet34": (21_797_672, {"stage_sizes": _50}),
    },
    ResNet,
    {**_IMAGENET_BASIC, "shortcut": "B"},
    _HE_2015,
    **_IMAGENET,
)
_PLAIN = {**_IMAGENET_BASIC, "block": PlainLayer, "shortcut": None}
_add(
    {
        "plain18": (11_515_688, {"stage_sizes": (4, 4, 4, 4)}),
        "plain34": (21_623_848, {"stage_sizes": (6, 8, 12, 6)}),
    },
    ResNet,
    _PLAIN,
    _HE_2015,
    **_IMAGENET,
)
_add(
    {
        "plain18_max_pool": (11_515_688, {"stage_sizes": (4, 4, 4, 4)}),
        "plain34_max_pool": (21_623_848, {"stage_sizes": (6, 8, 12, 6)}),
    },
    ResNet,
    {**_PLAIN, "block_kwargs": {"downsample": "max_pool"}},
    f"after {_HE_2015}, with max-pooling in place of strides",
    **_IMAGENET,
)
_add(
    {
        "resnet50": (25_557_032, {"stage_sizes": _50}),
        "resnet101": (44_549_160, {"stage_sizes": _101}),
        "resnet152": (60_192_808, {"stage_sizes": _152}),
    },
    ResNet,
    {**_IMAGENET_BOTTLENECK, "block": Bottleneck},
    _HE_2015,
    **_IMAGENET,
)
_add(
    {"resnet200": (64_673_832, {"stage_sizes": _200})},
    ResNet,
    {**_IMAGENET_BOTTLENECK, "block": Bottleneck},
    "He et al. 2016, original units",
    **_IMAGENET,
)
_add(
    {
        "wide_resnet50_2": (68_883_240, {"stage_sizes": _50}),
        "wide_resnet101_2": (126_886_696, {"stage_sizes": _101}),
    },
    ResNet,
    {
        **_IMAGENET_BOTTLENECK,
        "block": Bottleneck,
        "block_kwargs": {"base_width": 128},
    },
    "torchvision, after Zagoruyko and Komodakis 2016",
    **_IMAGENET,
)

# --- He et al. 2016 -------------------------------------------------------------------

_TABLE_1 = "He et al. 2016, table 1"
_110 = _sections(110, 2)
_GATED = 1_824_186  # a 1x1 convolution with bias in each of 54 units: + 96,224

_add(
    {
        "resnet110_scaling_0_1": (
            1_727_962,
            {"block_kwargs": {"shortcut_scale": 0.0, "branch_scale": 1.0}},
        ),
        "resnet110_scaling_05_1": (
            1_727_962,
            {"block_kwargs": {"shortcut_scale": 0.5, "branch_scale": 1.0}},
        ),
    },
    ResNet,
    {**_110, "block": ConstantScaling},
    _TABLE_1,
    expected_to_fail=True,
)
_add(
    {
        "resnet110_scaling_05_05": (
            1_727_962,
            {"block_kwargs": {"shortcut_scale": 0.5, "branch_scale": 0.5}},
        ),
    },
    ResNet,
    {**_110, "block": ConstantScaling},
    _TABLE_1,
)
_add(
    {"resnet110_exclusive_gating_0": (_GATED, {"block_kwargs": {"gate_bias": 0.0}})},
    ResNet,
    {**_110, "block": ExclusiveGating},
    _TABLE_1,
    expected_to_fail=True,
)
_add(
    {
        "resnet110_exclusive_gating_6": (_GATED, {"block_kwargs": {"gate_bias": -6.0}}),
        "resnet110_exclusive_gating_7": (_GATED, {"block_kwargs": {"gate_bias": -7.0}}),
    },
    ResNet,
    {**_110, "block": ExclusiveGating},
    _TABLE_1,
)
_add(
    {
        "resnet110_shortcut_gating_0": (_GATED, {"block_kwargs": {"gate_bias": 0.0}}),
        "resnet110_shortcut_gating_6": (_GATED, {"block_kwargs": {"gate_bias": -6.0}}),
    },
    ResNet,
    {**_110, "block": ShortcutOnlyGating},
    _TABLE_1,
)
_add(
    {"resnet110_conv_shortcut": (1_826_202, {"shortcut": "C"})},
    ResNet,
    _110,
    _TABLE_1,
)
_add(
    {"resnet110_dropout_shortcut": (1_727_962, {})},
    ResNet,
    {**_110, "block": DropoutShortcut},
    _TABLE_1,
    expected_to_fail=True,
)

for _place, _block in (
    ("bn_after_addition", BatchNormAfterAddition),
    ("relu_before_addition", ReluBeforeAddition),
    ("relu_only_preact", ReluOnlyPreactivation),
):
    _add(
        {
            f"resnet110_{_place}": (1_727_962, _110),
            f"resnet164_{_place}": (
                1_704_154,
                {
                    **_CIFAR_BOTTLENECK,
                    **_sections(164, 3),
                    "block_kwargs": {"bottleneck": True},
                },
            ),
        },
        ResNet,
        {"block": _block},
        "He et al. 2016, table 2",
    )

_PREACT = {"block": FullPreactivation}
_PREACT_BOTTLENECK = {
    **_PREACT,
    "shortcut": "B_linear",
    "block_kwargs": {"bottleneck": True},
}

_add({"preact_resnet110": (1_727_962, _110)}, ResNet, _PREACT, "He et al. 2016")
_add(
    {
        "preact_resnet164": (1_703_258, _sections(164, 3)),
        "preact_resnet1001": (10_327_706, _sections(1001, 3)),
    },
    ResNet,
    {**_CIFAR_BOTTLENECK, **_PREACT_BOTTLENECK},
    "He et al. 2016",
)
_add(
    {
        "preact_resnet152": (60_185_128, {"stage_sizes": _152}),
        "preact_resnet200": (64_666_152, {"stage_sizes": _200}),
    },
    ResNet,
    {
        **_IMAGENET_BOTTLENECK,
        **_PREACT_BOTTLENECK,
        "block_kwargs": {"bottleneck": True, "stride_on": "3x3"},
    },
    "He et al. 2016",
    **_IMAGENET,
)

# The same units; timm has no BatchNorm and ReLU in the stem, and so one more in the
# first unit.
_TIMM = "timm, after He et al. 2016"
_add(
    {
        "resnetv2_18": (11_687_720, {"stage_sizes": (2, 2, 2, 2)}),
        "resnetv2_34": (21_795_880, {"stage_sizes": _50}),
    },
    ResNet,
    {**_IMAGENET_BASIC, **_PREACT, "shortcut": "B_linear", "stem": "imagenet_linear"},
    _TIMM,
    **_IMAGENET,
)
_add(
    {
        "resnetv2_50": (25_549_352, {"stage_sizes": _50}),
        "resnetv2_101": (44_541_480, {"stage_sizes": _101}),
        "resnetv2_152": (60_185_128, {"stage_sizes": _152}),
    },
    ResNet,
    {**MODELS["preact_resnet152"].arguments, "stem": "imagenet_linear"},
    _TIMM,
    **_IMAGENET,
)

# --- Zagoruyko and Komodakis 2016 -----------------------------------------------------

for _depth, _width, _params in (
    (16, 8, 10_961_370),
    (40, 4, 8_949_210),
    (28, 10, 36_479_194),
):
    _n = (_depth - 4) // 6
    _own = {
        "stage_sizes": (_n,) * 3,
        "features": tuple(_width * f for f in (16, 32, 64)),
    }
    _add(
        {f"wrn{_depth}_{_width}": (_params, _own)},
        ResNet,
        {**_PREACT, "stem_features": 16, "shortcut": "B_linear"},
        "Zagoruyko and Komodakis 2016",
    )

_add(
    {"wrn28_10_dropout": (36_479_194, {"block_kwargs": {"dropout": 0.3}})},
    ResNet,
    MODELS["wrn28_10"].arguments,
    "Zagoruyko and Komodakis 2016",
)

# --- Xie et al. 2017 ------------------------------------------------------------------

_XIE = "Xie et al. 2017"
for _depth, _sizes, _rows in (
    (
        50,
        _50,
        (
            (1, 64, 25_557_032),
            (2, 40, 25_425_000),
            (4, 24, 25_292_968),
            (8, 14, 25_603_016),
            (32, 4, 25_028_904),
        ),
    ),
    (
        101,
        _101,
        (
            (32, 4, 44_177_704),
            (2, 64, 84_198_184),
            (64, 4, 83_455_272),
            (32, 8, 88_791_336),
        ),
    ),
):
    for _c, _d, _params in _rows:
        _own = {"stage_sizes": _sizes, "cardinality": _c, "base_width": _d}
        _add(
            {f"resnext{_depth}_{_c}x{_d}d": (_params, _own)},
            build_resnext,
            _IMAGENET_BOTTLENECK,
            f"torchvision, after {_XIE}" if (_c, _d) == (32, 8) else _XIE,
            **_IMAGENET,
        )

for _c, _d, _params in (
    (1, 64, 4_914_250),
    (2, 64, 9_130_314),
    (4, 64, 17_562_442),
    (8, 64, 34_426_698),
    (16, 64, 68_155_210),
    (1, 128, 13_775_178),
    (1, 192, 27_280_970),
):
    _own = {**_sections(29, 3), "cardinality": _c, "base_width": _d}
    _add(
        {f"resnext29_{_c}x{_d}d": (_params, _own)},
        build_resnext,
        {"features": (256, 512, 1024), "stem_features": 64, "shortcut": "B"},
        _XIE,
    )


# --- Huang et al. 2017 ----------------------------------------------------------------

_DENSENET = "Huang et al. 2017"
for _depth, _k, _params in (
    (40, 12, 1_019_722),
    (100, 12, 6_979_642),
    (100, 24, 27_249_082),
):
    _own = {"depth": _depth, "growth_rate": _k}
    _add({f"densenet{_depth}_{_k}": (_params, _own)}, build_densenet, {}, _DENSENET)
for _depth, _k, _params in (
    (100, 12, 769_162),
    (250, 24, 15_324_406),
    (190, 40, 25_624_430),
    (40, 36, 1_542_682),  # the wide ones are in the README of the code alone
    (40, 48, 2_733_130),
    (40, 60, 4_261_690),
):
    _own = {"depth": _depth, "growth_rate": _k}
    _add(
        {f"densenet_bc{_depth}_{_k}": (_params, _own)},
        build_densenet,
        {"bottleneck": True, "compression": 0.5},
        f"{_DENSENET}, the authors' code" if _depth == 40 else _DENSENET,
    )
for _depth, _k, _sizes, _params in (
    (121, 32, (6, 12, 24, 16), 7_978_856),
    (169, 32, (6, 12, 32, 32), 14_149_480),
    (201, 32, (6, 12, 48, 32), 20_013_928),
    (264, 32, (6, 12, 64, 48), 33_337_704),
    (161, 48, (6, 12, 36, 24), 28_681_000),
):
    _own = {"stage_sizes": _sizes, "growth_rate": _k, "stem_features": 2 * _k}
    _add(
        {f"densenet{_depth}": (_params, _own)},
        DenseNet,
        {"stem": "imagenet", "bottleneck": True, "compression": 0.5},
        f"{_DENSENET}, the authors' code" if _depth == 161 else _DENSENET,
        **_IMAGENET,
    )

# --- Srivastava et al. 2015 -----------------------------------------------------------

_add(
    {"highway19": (2_256_838, {})},
    HighwayNet,
    {},
    "Srivastava et al. 2015 (1507.06228)",
)
_add(
    {
        "highway10_mnist": (85_660, {"depth": 10, "gate_bias": -1.0}),
        "highway50_mnist": (289_660, {}),
    },
    HighwayMLP,
    {},
    "Srivastava et al. 2015 (1505.00387)",
    image_size=28,
    channels=1,
)

# --- Before residual networks ---------------------------------------------------------

for _depth, _layers, _params, _params_bn in (
    (11, (1, 1, 2, 2, 2), 132_863_336, 132_868_840),
    (13, (2, 2, 2, 2, 2), 133_047_848, 133_053_736),
    (16, (2, 2, 3, 3, 3), 138_357_544, 138_365_992),
    (19, (2, 2, 4, 4, 4), 143_667_240, 143_678_248),
):
    _own = {"stage_sizes": _layers}
    _add(
        {f"vgg{_depth}": (_params, _own)},
        VGG,
        {},
        "Simonyan and Zisserman 2015",
        **_IMAGENET,
    )
    _add(
        {f"vgg{_depth}_bn": (_params_bn, _own)},
        VGG,
        {"batch_norm": True},
        "torchvision, after Simonyan and Zisserman 2015",
        **_IMAGENET,
    )
_add(
    {"vgg15": (14_991_946, {})},
    VGG,
    {
        "stage_sizes": (2, 2, 3, 3, 3),
        "batch_norm": True,
        "stem": "small",
        "conv_dropout": (0.3, 0.4, 0.4, 0.4, 0.4),
        "norm": _BatchNorm,
    },
    "Veit et al. 2016",
)
_add(
    {"googlenet_2014": (13_378_280, {})},
    GoogLeNet,
    {},
    "Szegedy et al. 2015",
    **_IMAGENET,
)
_add(
    {"googlenet": (13_004_888, {})},
    GoogLeNet,
    {
        "batch_norm": True,
        "large_kernel": 3,
        "last_pool": 2,
        "aux_grid": 4,
        "dropout": 0.2,
        "norm": _BatchNorm,
    },
    "torchvision, after Szegedy et al. 2015",
    **_IMAGENET,
)
_add(
    {"alexnet_2012": (60_965_224, {"towers": 2})},
    AlexNet,
    {},
    "Krizhevsky et al. 2012",
    **_IMAGENET,
)
_add(
    {"alexnet": (61_100_840, {})},
    AlexNet,
    {},
    "torchvision, after Krizhevsky 2014",
    **_IMAGENET,
)


def create_model(name: str, **kwargs: Any) -> Network:
    """The network of that name.

    Args:
        name: one of `list_models()`.
        **kwargs: fields of its class, as `num_classes`, `stochastic_depth`, `shortcut`,
            `axis_name`, `dtype`. `block_kwargs` are added to the name's own.

    Raises:
        InputError: unknown name, a field that the class does not have, or a value that
            the field does not take.
    """
    if name not in MODELS:
        hint = (
            "list_models() has all, and one of your own has to be registered first, by "
            "register_model"
        )
        raise unknown_name("model", name, MODELS, hint)
    entry = MODELS[name]
    known = inspect.signature(entry.build).parameters
    if inspect.Parameter.VAR_KEYWORD not in {p.kind for p in known.values()}:
        for field in sorted(set(kwargs) - set(known)):
            own = set(known) - {"parent", "name"}  # which are Flax's
            raise unknown_name(f"field of {name}", field, own)
    fields = {"num_classes": entry.num_classes, **entry.arguments, **kwargs}
    try:
        if "block_kwargs" in kwargs:
            own = entry.arguments.get("block_kwargs", {})
            fields["block_kwargs"] = {**own, **kwargs["block_kwargs"]}
        return entry.build(**fields)
    except TypeError as error:
        raise InputError(f"{name} cannot be made: {error}.") from error


def list_models() -> list[str]:
    """The names that `create_model` takes, in the order of the table."""
    return list(MODELS)


def register_model(name: str, entry: ModelEntry, *, replace: bool = False) -> None:
    """Adds a network of your own to the table.

    Args:
        name: under which `create_model` makes it.
        entry: what it is made of.
        replace: whether it may take the place of another, as in a notebook's cell that
            is run again.

    Raises:
        InputError: the name is taken, and `replace` is False.
    """
    if name in MODELS and not replace:
        raise InputError(
            f"A model named {name!r} is in the table already; replace=True puts this "
            "one in its place."
        )
    MODELS[name] = entry
