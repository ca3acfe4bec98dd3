# SPDX-License-Identifier: Apache-2.0
"""Every name of the table: its exact size and depth, and what gates do in it."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rn_jax
from rn_jax import create_model
from rn_jax.analysis.cost import multiply_adds
from rn_jax.models import MODELS

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
}

# Sizes with other classes or fields: (name, fields) -> parameters.
VARIANTS = [
    ("resnet18", {"shortcut": "A"}, 11_515_688),
    ("resnet18", {"shortcut": "C"}, 12_043_816),
    ("resnet34", {"shortcut": "A"}, 21_623_848),
    ("resnet34", {"shortcut": "C"}, 22_716_840),
    ("resnet50", {"block_kwargs": {"stride_on": "1x1"}}, 25_557_032),
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
]

# Multiply-adds of one 224x224 image in 1e9 (torchvision's metadata and arithmetic).
MULTIPLY_ADDS = [
    ("resnet18", {}, 1.814),
    ("resnet18", {"shortcut": "A"}, 1.795),
    ("plain18", {}, 1.795),
    ("resnet34", {}, 3.664),
    ("resnet34", {"shortcut": "A"}, 3.644),
    ("plain34", {}, 3.644),
    ("resnet50", {}, 4.089),
    ("resnet50", {"block_kwargs": {"stride_on": "1x1"}}, 3.858),
    ("resnet101", {}, 7.801),
    ("resnet101", {"block_kwargs": {"stride_on": "1x1"}}, 7.570),
    ("resnet152", {}, 11.514),
    ("resnet152", {"block_kwargs": {"stride_on": "1x1"}}, 11.282),
    ("resnet200", {}, 15.007),
    ("resnet200", {"block_kwargs": {"stride_on": "1x1"}}, 14.776),
    ("wide_resnet50_2", {}, 11.398),
    ("wide_resnet101_2", {}, 22.753),
    ("resnext50_32x4d", {}, 4.230),
    ("resnext101_32x8d", {}, 16.414),
    ("resnext101_64x4d", {}, 15.460),
]


def image_shape(model, batch=1):
    size = 32 if model.stem == "small" else 64
    return (batch, size, size, 3)


def shapes_of(model):
    image = jax.ShapeDtypeStruct(image_shape(model), jnp.float32)
    init = partial(model.init, train=False)
    return jax.eval_shape(init, {"params": jax.random.key(0)}, image)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def shapes():
    """name -> shapes of its variables, traced once."""
    return {name: shapes_of(create_model(name)) for name in rn_jax.list_models()}


def test_golden_counts_are_those_of_the_table_and_of_the_networks(shapes):
    assert set(GOLDEN) == set(rn_jax.list_models())
    for name, params in GOLDEN.items():
        assert count(shapes[name]["params"]) == params == MODELS[name].params, name


@pytest.mark.parametrize("name, fields, params", VARIANTS)
def test_counts_of_variants(name, fields, params):
    assert count(shapes_of(create_model(name, **fields))["params"]) == params


def test_depth_is_what_the_name_says(shapes):
    """Weighted layers on the longest path."""
    for name, tree in shapes.items():
        layers = projections = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree["params"]):
            keys = [key.key for key in path]
            if keys[-1] != "kernel" or "gate" in keys:
                continue
            if "shortcut" in keys:
                projections += 1
            else:
                layers += leaf.shape[0] if "blocks" in keys else 1
        if name.startswith("wrn"):  # by custom 6n + 4 counts the three projections,
            layers += projections - 1  # beside the path, and not the classifier
        assert layers == int(re.search(r"\d+", name).group()), name


@pytest.mark.parametrize("name, fields, expected", MULTIPLY_ADDS)
def test_multiply_adds(name, fields, expected):
    found = multiply_adds(create_model(name, **fields), 224)
    assert round(found / 1e9, 3) == expected


def test_rows_that_fail_in_the_paper_say_so():
    failing = {name for name, entry in MODELS.items() if entry.expected_to_fail}
    assert failing == {
        "resnet110_scaling_0_1",
        "resnet110_scaling_05_1",
        "resnet110_exclusive_gating_0",
        "resnet110_dropout_shortcut",
    }
    for name, entry in MODELS.items():
        assert entry.paper, name
        assert entry.num_classes == (1000 if entry.image_size == 224 else 10)
        if name in failing:
            assert "fails" in entry.published


# --- What gates do, for every distinct block and trunk --------------------------------

# One name for each block and trunk; the others differ in depth and width alone.
KINDS = [
    "resnet20",
    "plain20",
    "resnet164",
    "resnet18",
    "plain18",
    "plain18_max_pool",
    "resnet50",
    "resnet110_scaling_05_05",
    "resnet110_exclusive_gating_6",
    "resnet110_shortcut_gating_6",
    "resnet110_conv_shortcut",
    "resnet110_dropout_shortcut",
    "resnet110_bn_after_addition",
    "resnet164_bn_after_addition",
    "resnet110_relu_before_addition",
    "resnet164_relu_before_addition",
    "resnet110_relu_only_preact",
    "resnet164_relu_only_preact",
    "preact_resnet110",
    "preact_resnet164",
    "preact_resnet152",
    "wide_resnet50_2",
    "wrn16_8",
    "wrn28_10_dropout",
    "resnext50_32x4d",
]


def narrow(name, **fields):
    """The network of that name with two stages, few blocks and few channels."""
    model = create_model(name, num_classes=3)
    bottleneck = model.features[0] != (model.stem_features or model.features[0])
    features = (16, 32) if bottleneck else (4, 8)
    kwargs = dict(model.block_kwargs)
    if "groups" in kwargs:
        kwargs |= {"groups": 2, "base_width": 32}
    return model.copy(
        stage_sizes=(2, 2),
        features=features,
        stem_features=4 if model.stem_features else None,
        block_kwargs=kwargs,
        **fields,
    )


def test_every_name_has_a_kind():
    """So that a new block cannot go without these tests."""

    def kind(name):
        model = create_model(name)
        return model.block, model.shortcut == "C", tuple(sorted(model.block_kwargs))

    covered = {kind(name) for name in KINDS}
    assert not {name for name in rn_jax.list_models() if kind(name) not in covered}


# Kinds that differ from another in what tests of their own hold: in `make test-all`.
LONG = {
    "plain18_max_pool",
    "resnet164_bn_after_addition",
    "resnet164_relu_before_addition",
    "resnet164_relu_only_preact",
    "resnet110_conv_shortcut",
    "wide_resnet50_2",
    "preact_resnet152",
    "wrn16_8",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in KINDS],
)
def test_gates_and_one_training_step(name, quick_compile, random_variables):
    model = narrow(name)
    size = 8 if model.stem == "small" else 16
    shape = (size, size, 3)
    variables = random_variables(model, shape)
    images = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    ones, zeros = np.ones(model.num_blocks, "float32"), np.zeros(model.num_blocks)

    @jax.jit
    def run(variables, images, gates):
        def loss(params, gates):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                gates=gates,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            return (logits**2).sum(), updates

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
                mine[layer] = jax.tree.map(lambda leaf: leaf * 3 + 1, mine[layer])
                slopes = gradients["params"][stage][block][layer]
                assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes))
    again, *_ = run(rn_jax.stack(scrambled, model), images, zeros.astype("float32"))
    np.testing.assert_array_equal(closed, again)
    assert not np.allclose(closed, logits)


def on_the_branch(name, layer, info):
    """Whether a closed block leaves a layer out."""
    if layer in ("shortcut", "bn_after"):
        return False
    if layer == "gate":
        return "exclusive" in name
    if layer == "bn1" and ("preact_resnet" in name or "wrn" in name):
        # One BN-ReLU feeds both paths where a convolution is on the shortcut.
        return info.same_shape or name == "preact_resnet110"
    return True


@pytest.mark.slow
def test_one_training_step_by_shape_for_every_name():
    """The step of every other name is traced whole, though not run."""
    for name in rn_jax.list_models():
        model = create_model(name)
        images = jax.ShapeDtypeStruct(image_shape(model, 2), jnp.float32)
        variables = shapes_of(model)

        def loss(params, stats, images, model=model):
            logits, _ = model.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            return (logits**2).sum()

        grads = jax.eval_shape(
            jax.grad(loss), variables["params"], variables["batch_stats"], images
        )
        assert jax.tree.map(lambda a: a.shape, grads) == jax.tree.map(
            lambda a: a.shape, variables["params"]
        )


def test_imagenet_networks_take_small_images():
    """With the small stem each also trains on 32x32."""
    for name in ("resnet18", "plain34", "resnet50", "preact_resnet200"):
        model = create_model(name, stem="small", num_classes=10)
        tree = shapes_of(model)["params"]
        assert tree["stem_conv"]["kernel"].shape[:2] == (3, 3)
        assert tree["head"]["kernel"].shape[1] == 10
