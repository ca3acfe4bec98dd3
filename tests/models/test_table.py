# SPDX-License-Identifier: Apache-2.0
"""Every name of the table: its exact size and depth, and what gates do in it."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import in_training
from sizes import narrow, one_of_each

import rn_jax
from benchmarks.training_step import make_step
from rn_jax import create_model
from rn_jax.models import MODELS
from rn_jax.models.fractalnet import join_inputs

# Name -> parameters with the classes of its data set (10, or 1000 for ImageNet), from
# the definitions of the papers by plain arithmetic, and of torchvision's models.
GOLDEN = {
    # He et al. 2015: 6n + 2 layers, shortcut A; a plain net has as many.
    **dict.fromkeys(("resnet20", "plain20"), 269_722),
    **dict.fromkeys(("resnet32", "plain32"), 464_154),
    **dict.fromkeys(("resnet44", "plain44"), 658_586),
    **dict.fromkeys(("resnet56", "plain56"), 853_018),
    **dict.fromkeys(("resnet110", "plain110"), 1_727_962),
    **dict.fromkeys(("resnet1202", "plain1202"), 19_421_274),
    "resnet152_svhn": 2_408_474,  # Huang et al. 2016: n = 25
    "resnet110_dropout": 1_727_962,
    # 9n + 2 layers, BatchNorm on the projections.
    "resnet164": 1_704_154,
    "resnet1001": 10_328_602,
    # ImageNet, shortcut B, as torchvision's; plain nets lack the projections.
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    **dict.fromkeys(("plain18", "plain18_max_pool"), 11_515_688),
    **dict.fromkeys(("plain34", "plain34_max_pool"), 21_623_848),
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet200": 64_673_832,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    # He et al. 2016, table 1: gates are 1x1 convolutions with bias, 96,224 in all.
    **dict.fromkeys(
        (
            "resnet110_scaling_0_1",
            "resnet110_scaling_05_1",
            "resnet110_scaling_05_05",
            "resnet110_dropout_shortcut",
        ),
        1_727_962,
    ),
    **dict.fromkeys(
        (
            "resnet110_exclusive_gating_0",
            "resnet110_exclusive_gating_6",
            "resnet110_exclusive_gating_7",
            "resnet110_shortcut_gating_0",
            "resnet110_shortcut_gating_6",
        ),
        1_727_962 + 96_224,
    ),
    "resnet110_conv_shortcut": 1_826_202,
    # Table 2: the order changes no count.
    **dict.fromkeys(
        (
            "resnet110_bn_after_addition",
            "resnet110_relu_before_addition",
            "resnet110_relu_only_preact",
            "preact_resnet110",
            "resnet110_single_layer",  # table 3: twice the units of half the layers
            "preact_resnet110_single_layer",
        ),
        1_727_962,
    ),
    **dict.fromkeys(
        (
            "resnet164_bn_after_addition",
            "resnet164_relu_before_addition",
            "resnet164_relu_only_preact",
        ),
        1_704_154,
    ),
    "preact_resnet164": 1_703_258,
    "preact_resnet1001": 10_327_706,
    # The original's, less the BatchNorms of its projections: 2 (256 + ... + 2048).
    "preact_resnet152": 60_192_808 - 7_680,
    "preact_resnet200": 64_673_832 - 7_680,
    # timm's: likewise; with basic units less 2 (128 + 256 + 512).
    "resnetv2_18": 11_689_512 - 1_792,
    "resnetv2_34": 21_797_672 - 1_792,
    "resnetv2_50": 25_557_032 - 7_680,
    "resnetv2_101": 44_549_160 - 7_680,
    "resnetv2_152": 60_192_808 - 7_680,
    # Zagoruyko and Komodakis 2016.
    "wrn16_8": 10_961_370,
    "wrn40_4": 8_949_210,
    **dict.fromkeys(("wrn28_10", "wrn28_10_dropout"), 36_479_194),
    # Xie et al. 2017.
    "resnext50_1x64d": 25_557_032,
    "resnext50_2x40d": 25_425_000,
    "resnext50_4x24d": 25_292_968,
    "resnext50_8x14d": 25_603_016,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext101_1x100d": 85_611_336,
    "resnext101_2x64d": 84_198_184,
    "resnext101_64x4d": 83_455_272,
    "resnext101_32x8d": 88_791_336,
    "resnext29_1x64d": 4_914_250,
    "resnext29_2x64d": 9_130_314,
    "resnext29_4x64d": 17_562_442,
    "resnext29_8x64d": 34_426_698,
    "resnext29_16x64d": 68_155_210,
    "resnext29_1x128d": 13_775_178,
    "resnext29_1x192d": 27_280_970,
    # One scalar in each of 54 blocks.
    "resnet110_zero_gamma": 1_727_962,
    **dict.fromkeys(("resnet110_re_zero", "weighted_resnet110"), 1_727_962 + 54),
    # Without BatchNorm: a bias for each of its channels and a scalar a block; or five
    # scalars a block, one before the first activation, one before the classifier.
    "resnet110_skip_init": 1_727_962 - 8_096 + 8_096 // 2 + 54,
    "resnet110_fixup": 1_727_962 - 8_096 + 5 * 54 + 2,
    # Singh et al. 2016: 7.43 million, secondary source: memory of the paper's table 4.
    "swapout32_w4": 7_427_146,
    # Hu et al. 2017: 2 C^2 / r + C / r + C in every block, as in timm's seresnet50.
    "se_resnet110": 1_727_962 + 18 * (49 + 162 + 580),
    "se_resnet50": 25_557_032 + 2_530_992,
    "se_resnet101": 44_549_160 + 2_530_992 + 17 * 132_160,
    "se_resnet152": 60_192_808 + 2_530_992 + 4 * 33_312 + 30 * 132_160,
    # Zhang et al. 2016: projections of 16 to 32, 32 to 64 and 16 to 64 channels, with
    # BatchNorm in original networks; in wide ones 16 to 64, 64 to 128, 128 to 256 and
    # 16 to 256. The paper has 13.3 million for the widest (secondary source).
    "ror3_110": 1_727_962 + 3_584 + 320,
    "ror3_164": 1_727_962 + 9 * 97_216 + 3_584 + 320,
    "pre_ror3_164": 1_727_962 + 9 * 97_216 + 3_584,
    "ror3_wrn40_4": 8_949_210 + 46_080,
    "ror3_wrn58_4": 8_949_210 + 3 * 1_550_080 + 46_080,
    # Huang et al. 2017; the paper's 16 channels first, 2 k for BC.
    "densenet40_12": 1_019_722,
    "densenet100_12": 6_979_642,
    "densenet100_24": 27_249_082,
    "densenet_bc100_12": 769_162,
    "densenet_bc250_24": 15_324_406,
    "densenet_bc190_40": 25_624_430,
    "densenet_bc40_36": 1_542_682,
    "densenet_bc40_48": 2_733_130,
    "densenet_bc40_60": 4_261_690,
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet264": 33_337_704,
    "densenet161": 28_681_000,
    # Han et al. 2017: floor(16 + k alpha / N) or floor(16 alpha^(k / N)) channels.
    "pyramidnet110_48": 1_739_730,
    "pyramidnet110_84": 3_855_054,
    "pyramidnet110_270": 28_485_477,
    "pyramidnet110_mul4_75": 1_717_584,
    "pyramidnet110_mul8": 3_812_716,
    "pyramidnet110_mul27": 28_259_684,
    "pyramidnet164_48": 1_684_002,
    "pyramidnet164_84": 3_710_550,
    "pyramidnet164_270": 27_216_021,
    "pyramidnet200_240": 26_617_000,
    "pyramidnet236_220": 26_806_528,
    "pyramidnet272_200": 26_049_562,
    # Larsson et al. 2017: 3x3 convolutions without biases, BatchNorms, the classifier.
    "fractalnet20": 33_724_618,
    "fractalnet10_16": 836_106,
    "fractalnet20_16": 2_113_594,
    "fractalnet40_16": 4_767_210,
    # Szegedy et al. 2017: timm's.
    "inception_resnet_v2": 55_843_464,
    # Highway networks; fully connected by 784 x 50, 9 or 49 layers, 50 x 10.
    "highway19": 2_256_838,
    # One gate more or less in 4, 5 and 5 layers: 9 w^2 + w for w = 32, 80 and 128.
    "highway19_independent": 2_256_838 + 1_063_312,
    "highway19_open": 2_256_838 - 1_063_312,
    "highway10_mnist": 39_250 + 9 * 2 * 2_550 + 510,
    "highway50_mnist": 39_250 + 49 * 2 * 2_550 + 510,
    # Before residual networks: torchvision's, and the forms of the papers.
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    # The convolutions of vgg16_bn, a layer of 512 with BatchNorm, the classifier.
    "vgg15": 14_714_688 + 8_448 + 512 * 513 + 1_024 + 5_130,
    "googlenet_2014": 13_378_280,
    "googlenet": 13_004_888,
    "alexnet_2012": 60_965_224,
    "alexnet": 61_100_840,
}

# Sizes with other classes or fields: (name, fields) -> parameters.
VARIANTS = [
    ("resnet18", {"shortcut": "A"}, 11_515_688),
    ("resnet18", {"shortcut": "C"}, 12_043_816),
    ("resnet34", {"shortcut": "A"}, 21_623_848),
    ("resnet34", {"shortcut": "C"}, 22_716_840),
    ("resnet50", {"block_kwargs": {"stride_on": "1x1"}}, 25_557_032),
    # In 12 of 16 blocks a projection of 4w = 256 to 2048 channels with BatchNorm:
    # 2, 3, 5 and 2 times 16 w^2 + 8 w more.
    ("resnet50", {"shortcut": "C"}, 25_557_032 + 14_571_520),
    ("resnet20", {"features": (46, 92, 184)}, 2_216_152),
    ("resnet110", {"stage_sizes": (16, 14, 10)}, 1_052_506),
    ("preact_resnet110", {"shortcut": "B_linear"}, 1_730_522),
    ("resnet164", {"num_classes": 100}, 1_727_284),
    ("preact_resnet164", {"num_classes": 100}, 1_726_388),
    ("preact_resnet1001", {"num_classes": 100}, 10_350_836),
    ("wrn28_10", {"num_classes": 100}, 36_536_884),
    # More settings of a block are added to the name's own.
    ("preact_resnet164", {"block_kwargs": {"dropout": 0.3}}, 1_703_258),
    ("wide_resnet50_2", {"block_kwargs": {"stride_on": "1x1"}}, 68_883_240),
    ("resnext50_32x4d", {"block_kwargs": {"stride_on": "1x1"}}, 25_028_904),
    ("resnext29_8x64d", {"num_classes": 100}, 34_518_948),
    ("resnext29_16x64d", {"num_classes": 100}, 68_247_460),
    ("resnext29_1x64d", {"num_classes": 100}, 5_006_500),
    ("densenet40_12", {"num_classes": 100}, 1_060_132),
    ("densenet100_12", {"num_classes": 100}, 7_084_852),
    ("densenet100_24", {"num_classes": 100}, 27_457_972),
    ("densenet_bc100_12", {"num_classes": 100}, 800_032),
    # The authors' code: 2 k channels first in basic networks as well.
    ("densenet40_12", {"stem_features": 24}, 1_059_298),
    ("densenet100_12", {"stem_features": 24}, 7_083_538),
    ("densenet100_24", {"stem_features": 48}, 28_071_706),
    ("fractalnet20", {"num_classes": 100}, 33_770_788),
    # The plain network of 20 layers: the deepest column.
    ("fractalnet20_16", {"column": 3}, 1_278_778),
    # TF-Slim's classes.
    ("inception_resnet_v2", {"num_classes": 1001}, 55_843_464 + 1_537),
    ("googlenet", {"aux_heads": False}, 6_624_904),
    ("googlenet_2014", {"aux_heads": False}, 6_998_552),
    # BatchNorm without biases, and true 5x5 convolutions.
    ("googlenet", {"large_kernel": 5, "aux_heads": False}, 7_005_832),
    ("googlenet", {"large_kernel": 5}, 13_385_816),
]


def image_shape(name, batch=1):
    """Small where the parameters do not depend on it, as with GoogLeNet's heads."""
    entry = MODELS[name]
    least = {"googlenet_2014": 224, "inception_resnet_v2": 75}
    size = min(entry.image_size, least.get(name, 64))
    return (batch, size, size, entry.channels)


def shapes_of(name, **fields):
    model = create_model(name, **fields)
    image = jax.ShapeDtypeStruct(image_shape(name), jnp.float32)
    init = partial(model.init, train=False)
    return jax.eval_shape(init, {"params": jax.random.key(0)}, image)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Tracing layer by layer takes seconds: in `make test-all`.
DEEP = {"densenet40_12", "densenet_bc100_12", "densenet121", "pyramidnet110_48"} ^ {
    name for name in GOLDEN if name.startswith(("densenet", "pyramidnet"))
}


@pytest.fixture(scope="module")
def shapes():
    """name -> shapes of its variables, traced once."""
    return {name: shapes_of(name) for name in rn_jax.list_models() if name not in DEEP}


def test_golden_counts_are_those_of_the_table_and_of_the_networks(shapes):
    assert set(GOLDEN) == set(rn_jax.list_models())
    for name, params in GOLDEN.items():
        assert params == MODELS[name].params, name
        if name not in DEEP:
            assert count(shapes[name]["params"]) == params, name


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DEEP))
def test_golden_count_and_depth_of_deep_networks(name):
    tree = shapes_of(name)
    assert count(tree["params"]) == GOLDEN[name]
    depth_is_what_the_name_says(name, tree)


@pytest.mark.parametrize(
    "name, fields, params",
    [pytest.param(*r, marks=[pytest.mark.slow] * (r[0] in DEEP)) for r in VARIANTS],
)
def test_counts_of_variants(name, fields, params):
    assert count(shapes_of(name, **fields)["params"]) == params


# Weighted layers of networks whose names do not say it. The fully connected highway
# network counts its hidden layers, and the classifier comes to them.
DEPTH = {
    "alexnet": 8,
    "alexnet_2012": 8,
    "googlenet": 22,
    "googlenet_2014": 22,
    "highway10_mnist": 11,
    "highway50_mnist": 51,
    # The deepest column, and the classifier, which the paper does not count.
    "fractalnet20": 21,
    "fractalnet10_16": 11,
    "fractalnet20_16": 21,
    "fractalnet40_16": 41,
    # Five of the stem, three modules, 10 + 20 + 10 blocks of four, and two.
    "inception_resnet_v2": 5 + 3 * 3 + 40 * 4 + 2,
    "densenet264": 265,  # (6 + 12 + 64 + 48) x 2, three transitions, first and last
}


def test_depth_is_what_the_name_says(shapes):
    for name, tree in shapes.items():
        depth_is_what_the_name_says(name, tree)


GATES = {"gate", "carry_gate"}  # beside the path


def depth_is_what_the_name_says(name, tree):
    """Weighted layers on the longest path."""
    layers = projections = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree["params"]):
        keys = [key.key for key in path]
        if keys[-1] != "kernel" or (GATES | {"squeeze", "excite"}) & set(keys):
            continue
        if keys[0].startswith("aux"):
            continue
        if beside_the_longest_path(name, keys):
            continue
        if "inception" in keys[0] and not keys[1].startswith("branch2"):
            continue  # beside the 1x1 and 3x3 convolutions of another branch
        if keys[0].endswith("_shortcut"):
            continue  # over a stage, or over all
        if "shortcut" in keys:
            projections += 1
        else:
            layers += leaf.shape[0] if "blocks" in keys else 1
    if "wrn" in name:  # by custom 6n + 4 counts the three projections,
        layers += projections - 1  # beside the path, and not the classifier
    depth = DEPTH.get(name) or int(re.search(r"\d\d+", name).group())
    assert layers == depth, name


def beside_the_longest_path(name, keys):
    """Whether a layer is of a shallower column or a shorter tower."""
    if name.startswith("fractalnet"):
        columns = create_model(name).columns
        deepest = {i.name for i in join_inputs(columns, columns)}
        return keys[0] != "head" and keys[1] not in deepest
    if name == "inception_resnet_v2":
        longest = {"stage1": 3, "stage2": 2, "stage3": 2, "stage4": 2}
        longest |= {"mixed_5b": 3, "mixed_6a": 2, "mixed_7a": 3}
        layer = next((key for key in keys if re.match("tower|pooled", key)), "")
        return layer != "" and not layer.startswith(f"tower{longest[keys[0]]}_")
    return False


# Credits of networks that their paper's tables and figures do not have.
NOT_IN_THE_PAPER = {
    "plain1202": "after He et al. 2015",
    "resnet110_dropout": "after Huang et al. 2016, with Dropout",
    "highway19_independent": "after Srivastava et al. 2015, with two gates",
    "highway19_open": "after Srivastava et al. 2015, without gates",
    "resnet110_zero_gamma": "after Goyal et al. 2017",
    "resnet110_re_zero": "after Bachlechner et al. 2020",
    "resnet110_skip_init": "after De and Smith 2020",
    "resnet110_fixup": "after Zhang et al. 2019",
    "weighted_resnet110": "after Shen et al. 2016",
    "se_resnet110": "after Hu et al. 2017",
    "plain18_max_pool": "after He et al. 2015, with max-pooling in place of strides",
    "plain34_max_pool": "after He et al. 2015, with max-pooling in place of strides",
    "wide_resnet50_2": "torchvision, after Zagoruyko and Komodakis 2016",
    "wide_resnet101_2": "torchvision, after Zagoruyko and Komodakis 2016",
    "resnext101_32x8d": "torchvision, after Xie et al. 2017",
    "densenet_bc40_36": "Huang et al. 2017, the authors' code",
    "densenet_bc40_48": "Huang et al. 2017, the authors' code",
    "densenet_bc40_60": "Huang et al. 2017, the authors' code",
    "densenet161": "Huang et al. 2017, the authors' code",
    "inception_resnet_v2": "Szegedy et al. 2017, the authors' code",
    "alexnet": "torchvision, after Krizhevsky 2014",
    "googlenet": "torchvision, after Szegedy et al. 2015",
}


def test_networks_that_no_paper_has_are_not_credited_to_one():
    own = {name: MODELS[name].paper for name in NOT_IN_THE_PAPER}
    assert own == NOT_IN_THE_PAPER
    for name, entry in MODELS.items():
        if name.endswith("_bn") or name.startswith("resnetv2"):
            assert re.match("(torchvision|timm), after ", entry.paper), name


def test_rows_name_their_paper_and_fit_its_data_set():
    for name, entry in MODELS.items():
        assert entry.paper, name
        assert entry.num_classes == (1000 if entry.image_size > 200 else 10)


# --- What gates do, for every distinct block and trunk --------------------------------

# One name for each block and trunk; the others differ in depth and width alone, and are
# the same network once made narrow.
KINDS = [
    "resnet20",
    "resnet152_svhn",
    "plain20",
    "resnet164",
    "resnet18",
    "plain18",
    "plain18_max_pool",
    "resnet50",
    "resnet110_zero_gamma",
    "resnet110_re_zero",
    "resnet110_skip_init",
    "resnet110_fixup",
    "weighted_resnet110",
    "swapout32_w4",
    "ror3_110",
    "pre_ror3_164",
    "ror3_wrn40_4",
    "se_resnet110",
    "se_resnet50",
    "resnet110_scaling_0_1",
    "resnet110_scaling_05_1",
    "resnet110_scaling_05_05",
    "resnet110_exclusive_gating_0",
    "resnet110_exclusive_gating_6",
    "resnet110_exclusive_gating_7",
    "resnet110_shortcut_gating_0",
    "resnet110_shortcut_gating_6",
    "resnet110_conv_shortcut",
    "resnet110_dropout_shortcut",
    "resnet110_bn_after_addition",
    "resnet164_bn_after_addition",
    "resnet110_relu_before_addition",
    "resnet164_relu_before_addition",
    "resnet110_relu_only_preact",
    "resnet164_relu_only_preact",
    "resnet110_single_layer",
    "preact_resnet110_single_layer",
    "resnet110_dropout",
    "preact_resnet110",
    "preact_resnet164",
    "preact_resnet152",
    "resnetv2_18",
    "resnetv2_50",
    "wide_resnet50_2",
    "wrn16_8",
    "wrn28_10_dropout",
    "resnext50_32x4d",
    "resnext29_8x64d",
    "densenet40_12",
    "densenet_bc100_12",
    "densenet121",
    "pyramidnet110_48",
    "pyramidnet110_mul8",
    "pyramidnet164_48",
    "fractalnet20",
    "inception_resnet_v2",
    "highway19",
    "highway19_independent",
    "highway19_open",
    "highway10_mnist",
    "highway50_mnist",
    "vgg16",
    "vgg16_bn",
    "vgg15",
]


def test_every_name_has_a_kind():
    """So that what holds for the kinds holds for every name with blocks."""
    kinds = [narrow(name) for name in KINDS]
    gated = [name for name in MODELS if create_model(name).num_blocks]
    assert [name for name in gated if narrow(name) not in kinds] == []


@pytest.mark.parametrize(
    "name", [name for name in MODELS if create_model(name).num_blocks == 0]
)
def test_networks_without_blocks_take_gates_of_none(name):
    model = create_model(name)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")

    def run(image, gates):
        rngs = {"params": jax.random.key(0)}
        return model.init_with_output(rngs, image, train=False, gates=gates)[0]

    gates = jax.ShapeDtypeStruct((0,), "float32")
    assert jax.eval_shape(run, image, gates).shape == (1, 1000)
    with pytest.raises(rn_jax.InputError, match=r"gates must have shape \[0\]"):
        jax.eval_shape(run, image, jax.ShapeDtypeStruct((1,), "float32"))


# Kinds whose differences from others have tests of their own: they take no step below.
LONG = {
    *("resnet110_zero_gamma", "resnet110_re_zero", "resnet110_skip_init"),
    *("weighted_resnet110", "se_resnet50", "ror3_wrn40_4"),
    *("resnetv2_18", "resnetv2_50"),
    "resnet50",
    "resnet164",
    "resnet18",
    "resnext50_32x4d",
    "preact_resnet164",
    "wrn28_10_dropout",
    "resnet110_relu_before_addition",
    "resnet110_scaling_05_05",
    "resnet152_svhn",
    "resnet110_scaling_0_1",
    "resnet110_scaling_05_1",
    "resnet110_exclusive_gating_0",
    "resnet110_exclusive_gating_7",
    "resnet110_shortcut_gating_0",
    "resnext29_8x64d",
    "highway10_mnist",
    "highway19_open",
    "resnet110_dropout",
    "plain18_max_pool",
    "resnet164_bn_after_addition",
    "resnet164_relu_before_addition",
    "resnet164_relu_only_preact",
    "resnet110_conv_shortcut",
    "wide_resnet50_2",
    "preact_resnet152",
    "wrn16_8",
    "densenet40_12",
    "densenet121",
    "inception_resnet_v2",
    "vgg16",
    "vgg15",
}


# Kinds whose gates `make test` looks at.
QUICK = {
    *("resnet20", "plain20", "resnet110_fixup", "resnet110_shortcut_gating_6"),
    *("preact_resnet110", "highway19", "densenet_bc100_12", "fractalnet20"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in KINDS],
)
def test_gates(name, random_variables):
    model = narrow(name)
    size = 16 if getattr(model, "stem", "").startswith("imagenet") else 8
    shape = (size, size, MODELS[name].channels)
    variables = random_variables(model, shape)
    images = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    ones, zeros = np.ones(model.num_blocks, "float32"), np.zeros(model.num_blocks)

    @jax.jit
    def run(variables, images, gates):
        loss = in_training(model, variables, images)
        grads, updates = jax.grad(loss, has_aux=True)(variables["params"], gates)
        logits = model.apply(variables, images, train=False, gates=gates)
        plain = model.apply(variables, images, train=False)
        return logits, plain, grads, updates

    # A gate vector of ones changes nothing, and every parameter is in use.
    logits, plain, grads, _ = run(variables, images, ones)
    np.testing.assert_allclose(logits, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path)

    # Zeros leave the shortcuts: what the branches hold has no effect and no gradient.
    skippable = {b.name for b in model.blocks if b.skippable}
    closed, _, grads, _ = run(variables, images, zeros.astype("float32"))
    scrambled = rn_jax.unstack(variables)
    gradients = rn_jax.unstack({"params": grads})
    for info in model.blocks:
        if info.name not in skippable:
            continue
        stage, block = info.name.split("/")
        mine = scrambled["params"][stage][block]
        for layer in mine:
            if on_the_branch(name, layer, info):
                # 0 times NaN is NaN: that it is not seen shows it is not computed.
                mine[layer] = jax.tree.map(lambda leaf: leaf * np.nan, mine[layer])
                slopes = gradients["params"][stage][block][layer]
                assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes))
    again, *_ = run(rn_jax.stack(scrambled, model), images, zeros.astype("float32"))
    np.testing.assert_array_equal(closed, again)
    assert not np.allclose(closed, logits)


def on_the_branch(name, layer, info):
    """Whether a closed block leaves a layer out."""
    if layer in ("shortcut", "bn_after"):
        return False
    if layer in GATES:
        return "exclusive" in name or "highway" in name
    if layer == "bn1" and name.startswith(
        ("preact_resnet", "resnetv2", "wrn", "swapout", "ror3_wrn")
    ):
        # One BN-ReLU feeds both paths where a convolution is on the shortcut.
        return info.same_shape or name.startswith("preact_resnet110")
    return True


# Kinds that take a step here; of the others it is traced.
STEPPED_IN_CI = {"resnet20", "highway50_mnist"}
STEPPED = {*KINDS, "alexnet_2012"} - LONG


def training_step(model, shape):
    """The step of `train`, the shapes of its state, and those of a batch."""
    step, create = make_step(model, shape[1:], learning_rate=0.1)
    batch = {
        "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
        "mask": jax.ShapeDtypeStruct(shape[:1], jnp.bool),
    }
    return step, jax.eval_shape(create, jax.random.key(0)), batch


def one_training_step(name):
    """Every parameter moves, and the loss is finite."""
    model = narrow(name)
    size = 16 if getattr(model, "stem", "").startswith("imagenet") else 8
    shape = (4, size, size, MODELS[name].channels)
    step, state, batch = training_step(model, shape)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.9, leaf.shape).astype(leaf.dtype) - 0.3, state
    )
    stats = jax.tree.map(lambda leaf: leaf + 0.4, state.batch_stats)
    state = state.replace(step=np.int32(0), batch_stats=stats)
    batch = {
        "image": rng.integers(0, 256, shape).astype("uint8"),
        "label": np.array([0, 1, 2, 1], "int32"),
        "mask": np.ones(4, bool),
    }
    after, sums = jax.jit(step)(state, batch, jax.random.key(0))
    assert np.isfinite(sums["loss"]) and after.step == 1
    moved = jax.tree.map(lambda a, b: np.any(a != b), after.params, state.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", sorted(STEPPED_IN_CI))
def test_one_training_step(name):
    one_training_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STEPPED - STEPPED_IN_CI))
def test_one_training_step_of_every_trunk(name):
    one_training_step(name)


@pytest.mark.slow
def test_one_training_step_by_shape_of_the_other_kinds():
    """The step of the whole network, of the smallest name that stands for others."""
    smallest = one_of_each(sorted(rn_jax.list_models(), key=GOLDEN.get))
    for name in set(smallest) - STEPPED:
        model = create_model(name)
        step, state, batch = training_step(model, image_shape(name, 2))
        after, sums = jax.eval_shape(step, state, batch, jax.random.key(0))
        assert jax.tree.map(lambda a: a.shape, after) == jax.tree.map(
            lambda a: a.shape, state
        )
        assert sums["loss"].shape == ()


def test_imagenet_networks_take_small_images():
    """With the small stem each also trains on 32x32."""
    convolutions = {
        **dict.fromkeys(("resnet18", "plain34", "resnet50"), "stem_conv"),
        **dict.fromkeys(("preact_resnet200", "densenet121"), "stem_conv"),
        **dict.fromkeys(("googlenet", "googlenet_2014"), "conv1"),
        **dict.fromkeys(("alexnet", "alexnet_2012"), "conv1"),
    }
    for name, first in convolutions.items():
        tree = shapes_of(name, stem="small", num_classes=10)["params"]
        layer = tree[first].get("conv", tree[first])
        assert layer["kernel"].shape[:2] == (3, 3)
        assert tree["head"]["kernel"].shape[1] == 10
    for name in ("vgg11", "vgg16_bn"):  # their first convolution is small already
        tree = shapes_of(name, stem="small", num_classes=10)["params"]
        assert tree["fc1"]["kernel"].shape == (512, 512)
