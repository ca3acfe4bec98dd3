# SPDX-License-Identifier: Apache-2.0
"""The table of networks, by the names of their papers."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rn_jax.errors import PUBLIC_WEIGHTS, InputError, unknown_name
from rn_jax.models import preact, squeeze_excite, swapout, weighted
from rn_jax.models.alexnet import AlexNet
from rn_jax.models.densenet import DenseNet, build_densenet
from rn_jax.models.fractalnet import FractalNet
from rn_jax.models.googlenet import GoogLeNet
from rn_jax.models.highway import HighwayMLP, HighwayNet
from rn_jax.models.inception_resnet import InceptionResNetV2
from rn_jax.models.network import Network
from rn_jax.models.normalization import BatchNorm, Identity
from rn_jax.models.pyramidnet import PyramidNet
from rn_jax.models.resnet import Bottleneck, PlainLayer, ResNet
from rn_jax.models.resnext import build_resnext
from rn_jax.models.ror import RoR
from rn_jax.models.vgg import VGG


@dataclass(frozen=True)
class ModelEntry:
    """One row of the table.

    Attributes:
        build: class or function that makes the network from `arguments` and those of
            the caller.
        arguments: arguments that distinguish this network within its family.
        paper: source of the network.
        params: exact number of parameters with `num_classes` classes.
        num_classes: number of classes of the paper's data set.
        image_size: side of the paper's images in pixels.
        channels: number of channels of the paper's images.
    """

    build: Callable[..., Network]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    params: int | None = None
    num_classes: int = 10
    image_size: int = 32
    channels: int = 3


MODELS: dict[str, ModelEntry] = {}
_NO_ARGUMENTS: Mapping[str, Any] = {}
_own: dict[str, Any]  # of the rows below
_stages: tuple[int, ...]
_block: type


def _rows(build, paper, **facts):
    """Return add(name, params, shared, **own), which adds a row of this paper."""

    def add(name, params, shared=_NO_ARGUMENTS, **own):
        MODELS[name] = ModelEntry(build, {**shared, **own}, paper, params, **facts)

    return add


def _sections(depth, layers):
    """Return three equal stages of a CIFAR network whose blocks have these layers."""
    return {"stage_sizes": ((depth - 2) // (3 * layers),) * 3}


class _BatchNorm(BatchNorm):
    """BatchNorm with the epsilon of Keras, and of GoogLeNet in torchvision.

    It is a class because an unpickled partial is not equal to the original.
    """

    epsilon: float = 1e-3


_IMAGENET = {"num_classes": 1000, "image_size": 224}

# --- He et al. 2015 -------------------------------------------------------------------

_HE_2015 = "He et al. 2015"
_add = _rows(ResNet, _HE_2015)
_add_after = _rows(ResNet, f"after {_HE_2015}")
_PLAIN = {"block": PlainLayer, "shortcut": None}

# Shortcut A has no parameters, so plain and residual networks have the same number.
for _depth, _params in (
    (20, 269_722),
    (32, 464_154),
    (44, 658_586),
    (56, 853_018),
    (110, 1_727_962),
    (1202, 19_421_274),
):
    _add(f"resnet{_depth}", _params, _sections(_depth, 2))
    # The paper has plain networks of up to 110 layers.
    _add_plain = _add if _depth <= 110 else _add_after
    _add_plain(f"plain{_depth}", _params, _PLAIN, **_sections(_depth, 1))

# "resnet152" is the network for ImageNet.
_add = _rows(ResNet, "Huang et al. 2016")
_add("resnet152_svhn", 2_408_474, _sections(152, 2), shortcut="A_pooled")
_add = _rows(ResNet, "after Huang et al. 2016, with Dropout")
_own = {"block": preact.DropoutBranch, "shortcut": "A_pooled"}
_add("resnet110_dropout", 1_727_962, _sections(110, 2), **_own)

_CIFAR_BOTTLENECK = {"features": (64, 128, 256), "stem_features": 16, "shortcut": "B"}
_ORIGINAL = {"block": Bottleneck, "block_kwargs": {"stride_on": "1x1"}}
_add = _rows(ResNet, "He et al. 2016, original units")
_add("resnet164", 1_704_154, _CIFAR_BOTTLENECK, **_ORIGINAL, **_sections(164, 3))
_add("resnet1001", 10_328_602, _CIFAR_BOTTLENECK, **_ORIGINAL, **_sections(1001, 3))

_BASIC = {"stem": "imagenet", "features": (64, 128, 256, 512)}
_BASIC_RESIDUAL = {**_BASIC, "shortcut": "B"}
_BASIC_PLAIN = {**_BASIC, **_PLAIN}
_WIDE_STAGES = {
    "stem": "imagenet",
    "features": (256, 512, 1024, 2048),
    "stem_features": 64,
    "shortcut": "B",
}
_BOTTLENECK = {**_WIDE_STAGES, "block": Bottleneck}
_18, _50, _101 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3)
_152, _200 = (3, 8, 36, 3), (3, 24, 36, 3)

_add = _rows(ResNet, _HE_2015, **_IMAGENET)
_add("resnet18", 11_689_512, _BASIC_RESIDUAL, stage_sizes=_18)
_add("resnet34", 21_797_672, _BASIC_RESIDUAL, stage_sizes=_50)
_add("plain18", 11_515_688, _BASIC_PLAIN, stage_sizes=(4, 4, 4, 4))
_add("plain34", 21_623_848, _BASIC_PLAIN, stage_sizes=(6, 8, 12, 6))
_BASIC_POOLED = {**_BASIC_PLAIN, "block_kwargs": {"downsample": "max_pool"}}
_add_pooled = _rows(
    ResNet, f"after {_HE_2015}, with max-pooling in place of strides", **_IMAGENET
)
_add_pooled("plain18_max_pool", 11_515_688, _BASIC_POOLED, stage_sizes=(4, 4, 4, 4))
_add_pooled("plain34_max_pool", 21_623_848, _BASIC_POOLED, stage_sizes=(6, 8, 12, 6))
_add("resnet50", 25_557_032, _BOTTLENECK, stage_sizes=_50)
_add("resnet101", 44_549_160, _BOTTLENECK, stage_sizes=_101)
_add("resnet152", 60_192_808, _BOTTLENECK, stage_sizes=_152)

_add = _rows(ResNet, "He et al. 2016, original units", **_IMAGENET)
_add("resnet200", 64_673_832, _BOTTLENECK, stage_sizes=_200)

_WIDE = {**_BOTTLENECK, "block_kwargs": {"base_width": 128}}
_add = _rows(ResNet, "torchvision, after Zagoruyko and Komodakis 2016", **_IMAGENET)
_add("wide_resnet50_2", 68_883_240, _WIDE, stage_sizes=_50)
_add("wide_resnet101_2", 126_886_696, _WIDE, stage_sizes=_101)

# --- He et al. 2016 -------------------------------------------------------------------

_110 = _sections(110, 2)
_GATED = 1_824_186  # a 1x1 convolution with bias in each of 54 units: + 96,224

_add = _rows(ResNet, "He et al. 2016, table 1")
for _name, _h, _f in (("0_1", 0.0, 1.0), ("05_1", 0.5, 1.0), ("05_05", 0.5, 0.5)):
    _own = {"block_kwargs": {"shortcut_scale": _h, "branch_scale": _f}}
    _name = f"resnet110_scaling_{_name}"
    _add(_name, 1_727_962, _110, block=preact.ConstantScaling, **_own)
for _name, _block, _bias in (
    ("exclusive_gating_0", preact.ExclusiveGating, 0.0),
    ("exclusive_gating_6", preact.ExclusiveGating, -6.0),
    ("exclusive_gating_7", preact.ExclusiveGating, -7.0),
    ("shortcut_gating_0", preact.ShortcutOnlyGating, 0.0),
    ("shortcut_gating_6", preact.ShortcutOnlyGating, -6.0),
):
    _own = {"block_kwargs": {"gate_bias": _bias}}
    _add(f"resnet110_{_name}", _GATED, _110, block=_block, **_own)
_add("resnet110_conv_shortcut", 1_826_202, _110, shortcut="C")
_add("resnet110_dropout_shortcut", 1_727_962, _110, block=preact.DropoutShortcut)

_BOTTLENECKS = {"block_kwargs": {"bottleneck": True}}
_164 = {**_CIFAR_BOTTLENECK, **_BOTTLENECKS, **_sections(164, 3)}
_add = _rows(ResNet, "He et al. 2016, table 2")
for _place, _block in (
    ("bn_after_addition", preact.BatchNormAfterAddition),
    ("relu_before_addition", preact.ReluBeforeAddition),
    ("relu_only_preact", preact.ReluOnlyPreactivation),
):
    _add(f"resnet110_{_place}", 1_727_962, _110, block=_block)
    _add(f"resnet164_{_place}", 1_704_154, _164, block=_block)

_PREACT = {"block": preact.FullPreactivation}
_SINGLE = {**_PREACT, "block_kwargs": {"single": True}}
_add = _rows(ResNet, "He et al. 2016, table 3")
_own = {"block": preact.SingleLayer, **_sections(110, 1)}
_add("resnet110_single_layer", 1_727_962, _own)
_add("preact_resnet110_single_layer", 1_727_962, _SINGLE, **_sections(110, 1))

_LINEAR = {**_PREACT, "shortcut": "B_linear"}
_CIFAR = {**_CIFAR_BOTTLENECK, **_LINEAR, **_BOTTLENECKS}
_UNITS = {"block_kwargs": {"bottleneck": True, "stride_on": "3x3"}}
_PREACT_BOTTLENECK = {**_WIDE_STAGES, **_LINEAR, **_UNITS}

_add = _rows(ResNet, "He et al. 2016")
_add("preact_resnet110", 1_727_962, _PREACT, **_110)
_add("preact_resnet164", 1_703_258, _CIFAR, **_sections(164, 3))
_add("preact_resnet1001", 10_327_706, _CIFAR, **_sections(1001, 3))
_add = _rows(ResNet, "He et al. 2016", **_IMAGENET)
_add("preact_resnet152", 60_185_128, _PREACT_BOTTLENECK, stage_sizes=_152)
_add("preact_resnet200", 64_666_152, _PREACT_BOTTLENECK, stage_sizes=_200)

# The same units with BatchNorm and ReLU in the first unit instead of the stem.
_V2_BASIC = {**_BASIC, **_LINEAR, "stem": "imagenet_linear"}
_V2_BOTTLENECK = {**_PREACT_BOTTLENECK, "stem": "imagenet_linear"}
_add = _rows(ResNet, "timm, after He et al. 2016", **_IMAGENET)
_add("resnetv2_18", 11_687_720, _V2_BASIC, stage_sizes=_18)
_add("resnetv2_34", 21_795_880, _V2_BASIC, stage_sizes=_50)
_add("resnetv2_50", 25_549_352, _V2_BOTTLENECK, stage_sizes=_50)
_add("resnetv2_101", 44_541_480, _V2_BOTTLENECK, stage_sizes=_101)
_add("resnetv2_152", 60_185_128, _V2_BOTTLENECK, stage_sizes=_152)

# --- Zagoruyko and Komodakis 2016 -----------------------------------------------------

_add = _rows(ResNet, "Zagoruyko and Komodakis 2016")
for _name, _depth, _width, _params, _own in (
    ("wrn16_8", 16, 8, 10_961_370, {}),
    ("wrn40_4", 40, 4, 8_949_210, {}),
    ("wrn28_10", 28, 10, 36_479_194, {}),
    ("wrn28_10_dropout", 28, 10, 36_479_194, {"block_kwargs": {"dropout": 0.3}}),
):
    _widths = {"features": tuple(_width * f for f in (16, 32, 64)), "stem_features": 16}
    _sizes = ((_depth - 4) // 6,) * 3
    _add(_name, _params, _LINEAR, stage_sizes=_sizes, **_widths, **_own)

# --- Zhang et al. 2016: the same networks with shortcuts of three levels --------------

_add = _rows(RoR, "Zhang et al. 2016")
_LEVELS = {"level_shortcut": "B_linear"}
_add("ror3_110", 1_731_866, _110)
_add("ror3_164", 2_606_810, _sections(164, 2))
_add("pre_ror3_164", 2_606_490, _PREACT, **_LEVELS, **_sections(164, 2))
for _depth, _params in ((40, 8_995_290), (58, 13_645_530)):
    _widths = {"features": (64, 128, 256), "stem_features": 16}
    _own = {"stage_sizes": ((_depth - 4) // 6,) * 3, **_widths, **_LEVELS}
    _add(f"ror3_wrn{_depth}_4", _params, _LINEAR, **_own)

# --- Xie et al. 2017 ------------------------------------------------------------------

_add = _rows(build_resnext, "Xie et al. 2017", **_IMAGENET)
_add_torchvision = _rows(
    build_resnext, "torchvision, after Xie et al. 2017", **_IMAGENET
)
for _depth, _stages, _c, _d, _params in (
    (50, _50, 1, 64, 25_557_032),
    (50, _50, 2, 40, 25_425_000),
    (50, _50, 4, 24, 25_292_968),
    (50, _50, 8, 14, 25_603_016),
    (50, _50, 32, 4, 25_028_904),
    (101, _101, 32, 4, 44_177_704),
    (101, _101, 1, 100, 85_611_336),
    (101, _101, 2, 64, 84_198_184),
    (101, _101, 64, 4, 83_455_272),
    (101, _101, 32, 8, 88_791_336),
):
    _own = {"stage_sizes": _stages, "cardinality": _c, "base_width": _d}
    _add_one = _add_torchvision if (_c, _d) == (32, 8) else _add
    _add_one(f"resnext{_depth}_{_c}x{_d}d", _params, _WIDE_STAGES, **_own)

_RESNEXT_29 = {"features": (256, 512, 1024), "stem_features": 64, "shortcut": "B"}
_add = _rows(build_resnext, "Xie et al. 2017")
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
    _add(f"resnext29_{_c}x{_d}d", _params, _RESNEXT_29, **_own)

# --- How a residual branch begins: see starts.py --------------------------------------

for _start, _paper, _params, _own in (
    ("zero_gamma", "Goyal et al. 2017", 1_727_962, {}),
    ("re_zero", "Bachlechner et al. 2020", 1_728_016, {}),
    # Biases or scalars in place of the 8,096 parameters of BatchNorm.
    (
        "skip_init",
        "De and Smith 2020",
        1_723_968,
        {"norm": Identity, "conv_bias": True},
    ),
    ("fixup", "Zhang et al. 2019", 1_720_138, {"norm": Identity}),
):
    _add = _rows(ResNet, f"after {_paper}")
    _add(f"resnet110_{_start}", _params, _110, branch_init=_start, **_own)

# --- Weights, masks and means on the branch -------------------------------------------

_add = _rows(ResNet, "after Shen et al. 2016")
_add("weighted_resnet110", 1_728_016, _110, block=weighted.WeightedResidual)

# 32 layers of 4 times the channels.
_32 = {**_sections(32, 2), "features": (64, 128, 256), "shortcut": "B_linear"}
_rows(ResNet, "Singh et al. 2016")(
    "swapout32_w4", 7_427_146, _32, block=swapout.Swapout
)

_add = _rows(ResNet, "after Hu et al. 2017")
_add("se_resnet110", 1_742_200, _110, block=squeeze_excite.ExcitedBasicBlock)
_add = _rows(ResNet, "Hu et al. 2017", **_IMAGENET)
_EXCITED = {**_WIDE_STAGES, "block": squeeze_excite.ExcitedBottleneck}
_add("se_resnet50", 28_088_024, _EXCITED, stage_sizes=_50)
_add("se_resnet101", 49_326_872, _EXCITED, stage_sizes=_101)
_add("se_resnet152", 66_821_848, _EXCITED, stage_sizes=_152)

# --- Huang et al. 2017 ----------------------------------------------------------------

_BC = {"bottleneck": True, "compression": 0.5}
_PAPERS = {True: "Huang et al. 2017, the authors' code", False: "Huang et al. 2017"}
for _name, _depth, _k, _params, _shared, _in_code_alone in (
    ("densenet", 40, 12, 1_019_722, {}, False),
    ("densenet", 100, 12, 6_979_642, {}, False),
    ("densenet", 100, 24, 27_249_082, {}, False),
    ("densenet_bc", 100, 12, 769_162, _BC, False),
    ("densenet_bc", 250, 24, 15_324_406, _BC, False),
    ("densenet_bc", 190, 40, 25_624_430, _BC, False),
    ("densenet_bc", 40, 36, 1_542_682, _BC, True),
    ("densenet_bc", 40, 48, 2_733_130, _BC, True),
    ("densenet_bc", 40, 60, 4_261_690, _BC, True),
):
    _add = _rows(build_densenet, _PAPERS[_in_code_alone])
    _add(f"{_name}{_depth}_{_k}", _params, _shared, depth=_depth, growth_rate=_k)
for _depth, _k, _stages, _params, _in_code_alone in (
    (121, 32, (6, 12, 24, 16), 7_978_856, False),
    (169, 32, (6, 12, 32, 32), 14_149_480, False),
    (201, 32, (6, 12, 48, 32), 20_013_928, False),
    (264, 32, (6, 12, 64, 48), 33_337_704, False),
    (161, 48, (6, 12, 36, 24), 28_681_000, True),
):
    _own = {"stage_sizes": _stages, "growth_rate": _k, "stem_features": 2 * _k}
    _add = _rows(DenseNet, _PAPERS[_in_code_alone], **_IMAGENET)
    _add(f"densenet{_depth}", _params, _BC, stem="imagenet", **_own)

# --- Han et al. 2017 ------------------------------------------------------------------

_add = _rows(PyramidNet, "Han et al. 2017")
for _name, _depth, _alpha, _params in (
    ("48", 110, 48, 1_739_730),
    ("84", 110, 84, 3_855_054),
    ("270", 110, 270, 28_485_477),
    ("mul4_75", 110, 4.75, 1_717_584),
    ("mul8", 110, 8, 3_812_716),
    ("mul27", 110, 27, 28_259_684),
):
    _own = {"alpha": _alpha, **_sections(_depth, 2)}
    if _name.startswith("mul"):
        _own["widening"] = "multiplicative"
    _add(f"pyramidnet{_depth}_{_name}", _params, **_own)
for _depth, _alpha, _params in (
    (164, 48, 1_684_002),
    (164, 84, 3_710_550),
    (164, 270, 27_216_021),
    (200, 240, 26_617_000),
    (236, 220, 26_806_528),
    (272, 200, 26_049_562),
):
    _own = {"alpha": _alpha, "bottleneck": True, **_sections(_depth, 3)}
    _add(f"pyramidnet{_depth}_{_alpha}", _params, **_own)

# --- Larsson et al. 2017 --------------------------------------------------------------

_add = _rows(FractalNet, "Larsson et al. 2017")
_add("fractalnet20", 33_724_618)
_NARROW = {"features": (16, 32, 64, 128, 128)}
for _columns, _params in ((2, 836_106), (3, 2_113_594), (4, 4_767_210)):
    _name = f"fractalnet{5 * 2 ** (_columns - 1)}_16"
    _add(_name, _params, _NARROW, columns=_columns)

# --- Szegedy et al. 2017 --------------------------------------------------------------

_add = _rows(
    InceptionResNetV2,
    "Szegedy et al. 2017, the authors' code",
    **{**_IMAGENET, "image_size": 299},
)
_add("inception_resnet_v2", 55_843_464, norm=_BatchNorm)

# --- Srivastava et al. 2015 -----------------------------------------------------------

_add = _rows(HighwayNet, "Srivastava et al. 2015 (1507.06228)")
_add("highway19", 2_256_838)
_add = _rows(HighwayNet, "after Srivastava et al. 2015, with two gates")
_add("highway19_independent", 3_320_150, gating="independent")
_add = _rows(HighwayNet, "after Srivastava et al. 2015, without gates")
_add("highway19_open", 1_193_526, gating="open")
_add = _rows(
    HighwayMLP, "Srivastava et al. 2015 (1505.00387)", image_size=28, channels=1
)
_add("highway10_mnist", 85_660, depth=10, gate_bias=-1.0)
_add("highway50_mnist", 289_660)

# --- Before residual networks ---------------------------------------------------------

_VGG = "Simonyan and Zisserman 2015"
_add = _rows(VGG, _VGG, **_IMAGENET)
_add_torchvision = _rows(VGG, f"torchvision, after {_VGG}", **_IMAGENET)
for _depth, _stages, _params, _params_bn in (
    (11, (1, 1, 2, 2, 2), 132_863_336, 132_868_840),
    (13, (2, 2, 2, 2, 2), 133_047_848, 133_053_736),
    (16, (2, 2, 3, 3, 3), 138_357_544, 138_365_992),
    (19, (2, 2, 4, 4, 4), 143_667_240, 143_678_248),
):
    _own = {"stage_sizes": _stages}
    _add(f"vgg{_depth}", _params, _own)
    _add_torchvision(f"vgg{_depth}_bn", _params_bn, _own, batch_norm=True)

_rows(VGG, "Veit et al. 2016")(
    "vgg15",
    14_991_946,
    stage_sizes=(2, 2, 3, 3, 3),
    batch_norm=True,
    stem="small",
    conv_dropout=(0.3, 0.4, 0.4, 0.4, 0.4),
    norm=_BatchNorm,
)
_rows(GoogLeNet, "Szegedy et al. 2015", **_IMAGENET)("googlenet_2014", 13_378_280)
_rows(GoogLeNet, "torchvision, after Szegedy et al. 2015", **_IMAGENET)(
    "googlenet",
    13_004_888,
    batch_norm=True,
    large_kernel=3,
    last_pool=2,
    aux_grid=4,
    dropout=0.2,
    norm=_BatchNorm,
)
_add = _rows(AlexNet, "Krizhevsky et al. 2012", **_IMAGENET)
_add("alexnet_2012", 60_965_224, towers=2)
_rows(AlexNet, "torchvision, after Krizhevsky 2014", **_IMAGENET)("alexnet", 61_100_840)


def create_model(name: str, **kwargs: Any) -> Network:
    """Return the network of that name.

    Args:
        name: one of `list_models()`.
        **kwargs: fields of its class, such as `num_classes`, `stochastic_depth`,
            `shortcut`, `axis_name` or `dtype`. `block_kwargs` are merged with those of
            the table.

    Raises:
        InputError: the name or a field is unknown, or a field does not allow its value.
    """
    if name not in MODELS:
        hint = (
            "list_models() returns all names, and register_model adds a network of "
            "your own"
        )
        if "." in str(name):
            hint = PUBLIC_WEIGHTS
        raise unknown_name("model", name, MODELS, hint)
    entry = MODELS[name]
    known = inspect.signature(entry.build).parameters
    if inspect.Parameter.VAR_KEYWORD not in {p.kind for p in known.values()}:
        for field in sorted(set(kwargs) - set(known)):
            own = set(known) - {"parent", "name"}  # these belong to Flax
            raise unknown_name(f"field of {name}", field, own)
    fields = {"num_classes": entry.num_classes, **entry.arguments, **kwargs}
    try:
        if "block_kwargs" in kwargs:
            own = entry.arguments.get("block_kwargs", {})
            fields["block_kwargs"] = {**own, **kwargs["block_kwargs"]}
        return entry.build(**fields)
    except TypeError as error:
        raise InputError(f"{name} cannot be built: {error}.") from error


def list_models() -> list[str]:
    """Return the names of all networks, in the order of the table."""
    return list(MODELS)


def register_model(name: str, entry: ModelEntry, *, replace: bool = False) -> None:
    """Add a network of your own to the table.

    Args:
        name: its name for `create_model`.
        entry: row of the table.
        replace: whether to replace a row of that name, as when a notebook's cell runs
            again.

    Raises:
        InputError: the name is taken and `replace` is False.
    """
    if name in MODELS and not replace:
        raise InputError(
            f"The table already has a model named {name!r}; replace=True replaces it."
        )
    MODELS[name] = entry
