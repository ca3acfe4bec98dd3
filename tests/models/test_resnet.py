# SPDX-License-Identifier: Apache-2.0
"""ResNets and plain nets: sizes of the papers, every value by NumPy, bad input."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import np_conv, np_norm

import rn_jax
from rn_jax import InputError, StochasticDepth, create_model
from rn_jax.models import MODELS, ModelEntry
from rn_jax.models.layers import SHORTCUTS, Conv, Shortcut
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.resnet import Bottleneck, PlainLayer, ResNet

# --- Sizes ----------------------------------------------------------------------------

# Depth -> parameters by shortcut, 10 classes; and of A with 100 classes.
# He et al. 2015, section 4.2, computed from the definition.
CIFAR = {
    20: {"A": 269_722, "B": 272_474, "C": 283_962, "A, 100 classes": 275_572},
    32: {"A": 464_154, "B": 466_906, "C": 489_594, "A, 100 classes": 470_004},
    44: {"A": 658_586, "B": 661_338, "C": 695_226, "A, 100 classes": 664_436},
    56: {"A": 853_018, "B": 855_770, "C": 900_858, "A, 100 classes": 858_868},
    110: {
        "A": 1_727_962,
        "B": 1_730_714,
        "C": 1_826_202,
        "A, 100 classes": 1_733_812,
    },
    1202: {
        "A": 19_421_274,
        "B": 19_424_026,
        "C": 20_538_714,
        "A, 100 classes": 19_427_124,
    },
}


def param_shapes(model, size=32):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    init = partial(model.init, train=False)
    return jax.eval_shape(init, {"params": jax.random.key(0)}, images)["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("depth", CIFAR)
def test_sizes_by_shortcut_and_classes(depth):
    sizes = CIFAR[depth]
    for shortcut in ("A", "A_centered", "A_pooled", "B", "C"):
        shapes = param_shapes(create_model(f"resnet{depth}", shortcut=shortcut))
        assert count(shapes) == sizes[shortcut[0]]
    for family in ("resnet", "plain"):
        shapes = param_shapes(create_model(f"{family}{depth}", num_classes=100))
        assert count(shapes) == sizes["A, 100 classes"]


@pytest.mark.parametrize("classes, params", [(10, 1_732_010), (100, 1_737_860)])
def test_size_with_biases_of_the_stochastic_depth_code(classes, params):
    model = create_model("resnet110", num_classes=classes, conv_bias=True)
    assert count(param_shapes(model)) == params


def test_identity_shortcuts_have_no_parameters():
    for shortcut, in_first, in_blocks in (
        ("A", False, False),
        ("A_centered", False, False),
        ("A_pooled", False, False),
        ("B", True, False),
        ("B_linear", True, False),
        ("C", True, True),
    ):
        shapes = param_shapes(create_model("resnet20", shortcut=shortcut))
        assert ("shortcut" in shapes["stage2"]["first"]) == in_first
        assert ("shortcut" in shapes["stage2"]["blocks"]) == in_blocks


def test_blocks():
    resnet, plain = create_model("resnet110"), create_model("plain20")
    assert resnet.num_blocks == len(resnet.blocks) == 54
    assert [b.index for b in resnet.blocks if not b.same_shape] == [18, 36]
    assert all(b.skippable for b in resnet.blocks)
    assert resnet.blocks[18].name == "stage2/block01"
    assert resnet.blocks[53].stage == 3
    assert plain.num_blocks == len(plain.blocks) == 18
    assert [b.index for b in plain.blocks if not b.skippable] == [6, 12]
    assert [b.same_shape for b in plain.blocks] == [b.skippable for b in plain.blocks]


# --- Every value by NumPy -------------------------------------------------------------


def np_shortcut_a(x, kind, stride, features):
    if kind == "A_pooled":
        height, width = (-(-n // stride) for n in x.shape[1:3])
        y = np.zeros((len(x), height, width, x.shape[3]))
        for i in range(height):
            for j in range(width):
                square = x[
                    :,
                    i * stride : (i + 1) * stride,
                    j * stride : (j + 1) * stride,
                ]
                y[:, i, j] = square.mean((1, 2))
    else:
        y = x[:, ::stride, ::stride]
    out = np.zeros((*y.shape[:3], features))
    start = (features - y.shape[3]) // 2 if kind == "A_centered" else 0
    out[..., start : start + y.shape[3]] = y
    return out


def np_block(x, params, stats, kind, stride, gate):
    """One block, or one layer of a plain net (kind None)."""

    def conv_bn(x, conv, bn, stride):
        x = np_conv(x, params[conv], stride)
        return np_norm(x, params[bn], stats[bn])

    if kind is None:
        y = np.maximum(conv_bn(x, "conv", "bn", stride), 0)
        return gate * y + (1 - gate) * x if y.shape == x.shape else y
    y = np.maximum(conv_bn(x, "conv1", "bn1", stride), 0)
    y = conv_bn(y, "conv2", "bn2", 1)
    if "shortcut" in params:
        x = np_conv(x, params["shortcut"]["conv"], stride)
        if "bn" in params["shortcut"]:
            x = np_norm(x, params["shortcut"]["bn"], stats["shortcut"]["bn"])
    elif y.shape != x.shape:
        x = np_shortcut_a(x, kind, stride, y.shape[3])
    return np.maximum(x + gate * y, 0)


def np_network(model, variables, images, gates):
    params, stats = variables["params"], variables["batch_stats"]
    x = np_norm(
        np_conv(images, params["stem_conv"]), params["stem_bn"], stats["stem_bn"]
    )
    x, gates = np.maximum(x, 0), list(gates)
    for stage in range(1, len(model.stage_sizes) + 1):
        p, s = params[f"stage{stage}"], stats[f"stage{stage}"]
        assert ("first" in p) == (stage > 1)
        if "first" in p:
            x = np_block(x, p["first"], s["first"], model.shortcut, 2, gates.pop(0))
        for i in range(model.stage_sizes[stage - 1] - ("first" in p)):
            mine = jax.tree.map(lambda a: a[i], (p["blocks"], s["blocks"]))
            x = np_block(x, *mine, model.shortcut, 1, gates.pop(0))
    assert not gates
    x = x.mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=["8x8", "7x9"])
@pytest.mark.parametrize("kind", [*SHORTCUTS, None, "A with biases"])
def test_logits_by_numpy(x64, random_variables, kind, size):
    options = {"shortcut": kind}
    if kind is None:
        options["block"] = PlainLayer
    elif "biases" in kind:
        options = {"conv_bias": True}
    model = ResNet((1, 2, 1), num_classes=3, features=(4, 8, 12), **options)
    variables = random_variables(model, (*size, 3), "float64")
    images = np.random.default_rng(0).normal(size=(2, *size, 3))
    run = jax.jit(partial(model.apply, train=False))
    for gates in ([1, 1, 1, 1], [1, 0, 1, 0], [0.5, 1, 0.25, 2]):
        gates = np.array(gates, "float64")
        ours = run(variables, images, gates=gates)
        expected = np_network(model, variables, images, gates)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)
        assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("kind", ["A", "A_centered", "A_pooled"])
@pytest.mark.parametrize("size", [(6, 4), (5, 7)], ids=["even", "odd"])
@pytest.mark.parametrize("stride, features", [(2, 7), (2, 4), (1, 9), (1, 4)])
def test_shortcut_a_by_numpy(kind, size, stride, features):
    x = np.random.default_rng(0).normal(size=(2, *size, 4)).astype("float32")
    shortcut = Shortcut(kind, features, stride, Conv, BatchNorm)
    ours = shortcut.apply({}, x)
    expected = np_shortcut_a(x.astype("float64"), kind, stride, features)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)
    if kind != "A_pooled":
        np.testing.assert_array_equal(ours, expected.astype("float32"))


# --- What a network is made of --------------------------------------------------------

SMALL = {"num_classes": 3, "features": (4, 8)}
IMAGE = (6, 6, 3)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(4, *IMAGE)).astype("float32")


def test_pooled_features(images, random_variables):
    model = ResNet((1, 1), **SMALL)
    variables = random_variables(model, IMAGE)
    bare = ResNet((1, 1), **(SMALL | {"num_classes": None}))
    params = {k: v for k, v in variables["params"].items() if k != "head"}

    @jax.jit
    def both():
        features = bare.apply({**variables, "params": params}, images, train=False)
        return features, model.apply(variables, images, train=False)

    features, logits = both()
    assert features.shape == (4, 8)
    head = variables["params"]["head"]
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"][None], logits, rtol=1e-5, atol=1e-6
    )
    assert "head" not in param_shapes(bare, 6)


def training_results(model, variables, images):
    @jax.jit
    def run(variables):
        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return (logits.astype(jnp.float32) ** 2).mean(), (logits, updates)

        return jax.grad(loss, has_aux=True)(variables["params"])

    return run(variables)


def test_scan_unroll_changes_nothing(images, random_variables):
    model = ResNet((3,), num_classes=3, features=(4,))
    variables = random_variables(model, IMAGE)
    once, unrolled = (
        training_results(model.copy(scan_unroll=n), variables, images) for n in (1, 3)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=1e-6 * np.abs(b).max()
        ),
        once,
        unrolled,
    )


def test_bfloat16(images, random_variables):
    model = ResNet((2, 1), **SMALL, dtype=jnp.bfloat16)
    variables = random_variables(model.copy(dtype=None), IMAGE)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    grads, (logits, updates) = training_results(model, variables, images)
    assert logits.dtype == jnp.bfloat16
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves((shapes, grads, updates))}
    assert dtypes == {"float32"}
    _, (exact, _) = training_results(model.copy(dtype=None), variables, images)
    error = np.abs(logits.astype(jnp.float32) - exact).max()
    assert 0 < error < 0.05 * np.abs(exact).max()


def test_forward_mode_with_the_gradient_of_xla(images, random_variables):
    model = ResNet((2, 1), **SMALL, conv_gradient="xla")
    variables = random_variables(model, IMAGE)

    @jax.jit
    def both_modes(images, gates):
        def f(images):
            return model.apply(variables, images, train=False, gates=gates).sum()

        tangent = jnp.ones_like(images)
        return jax.jvp(f, (images,), (tangent,))[1], jax.grad(f)(images).sum()

    forward, reverse = both_modes(images, np.array([1, 0, 1], "float32"))
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)

    def f(images):
        return ResNet((2, 1), **SMALL).apply(variables, images, train=False)

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jit(lambda x: jax.jvp(f, (x,), (x,))).lower(images)


def test_parameters_are_float32_where_64_bits_are_allowed(x64):
    model = ResNet((1, 1), **SMALL, conv_bias=True)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(param_shapes(model, 6))}
    assert dtypes == {"float32"}


def test_initial_parameters():
    model = ResNet((3, 2), num_classes=50, features=(16, 32), conv_bias=True)
    images = jnp.zeros((1, 4, 4, 3))
    init = jax.jit(partial(model.init, train=False))
    variables = init({"params": jax.random.key(0)}, images)
    params = variables["params"]

    # He's rule by fan-out: N(0, 2 / (k^2 C_out)), for each block of a scan its own.
    blocks = params["stage1"]["blocks"]["conv1"]["kernel"]
    for kernel in (*blocks, params["stage2"]["first"]["conv1"]["kernel"]):
        expected = np.sqrt(2 / (9 * kernel.shape[3]))
        assert abs(kernel.std() / expected - 1) < 5 / np.sqrt(2 * kernel.size)
        assert abs(kernel.mean()) < 5 * expected / np.sqrt(kernel.size)
        assert np.abs(kernel).max() > 2.5 * expected  # normal, not truncated at two
    assert abs(np.corrcoef(blocks[0].ravel(), blocks[1].ravel())[0, 1]) < 0.1

    head = params["head"]["kernel"]  # uniform in +- 1 / sqrt(C_in)
    limit = 32**-0.5
    assert np.abs(head).max() <= limit
    assert abs(head.std() / (limit / np.sqrt(3)) - 1) < 0.05

    leaves = jax.tree_util.tree_leaves_with_path(variables)
    constants = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
    seen = set()
    for path, leaf in leaves:
        name = path[-1].key
        if name in constants:
            assert np.all(leaf == constants[name]), path
            seen.add(name)
    assert seen == set(constants)


def test_parts_can_be_replaced(images, random_variables):
    # An activation, a norm and a convolution of one's own; constants of BatchNorm too.
    norm = partial(BatchNorm, momentum=0.5)
    default = ResNet((1, 1), **SMALL)
    variables = random_variables(default, IMAGE)
    before = variables["batch_stats"]["stem_bn"]["mean"]
    means = {}
    for name, model in {
        "0.9": default,
        "0.5": ResNet((1, 1), **SMALL, norm=norm, activation=nn.gelu),
    }.items():
        _, (logits, updates) = training_results(model, variables, images)
        means[name] = updates["batch_stats"]["stem_bn"]["mean"] - before
        assert np.all(np.isfinite(logits))
    np.testing.assert_allclose(means["0.5"], 5 * means["0.9"], rtol=1e-4, atol=1e-6)


def test_a_model_of_ones_own():
    entry = ModelEntry(ResNet, {"stage_sizes": (1,), "features": (4,)}, num_classes=7)
    rn_jax.register_model("mine", entry)
    try:
        assert rn_jax.list_models()[-1] == "mine"
        assert create_model("mine").num_classes == 7
        assert create_model("mine", num_classes=2).num_classes == 2
        with pytest.raises(InputError, match="already has a model named 'mine'"):
            rn_jax.register_model("mine", entry)
        other = ModelEntry(ResNet, entry.arguments, num_classes=3)
        rn_jax.register_model("mine", other, replace=True)
        assert create_model("mine").num_classes == 3
    finally:
        del MODELS["mine"]


# --- Bad input ------------------------------------------------------------------------


def apply_small(model=None, shape=(2, *IMAGE), dtype="float32", **arguments):
    """Shapes of a model's output, which is enough for its checks."""
    model = model or ResNet((2, 1), **SMALL)
    good = jnp.zeros((1, *IMAGE))

    def run():
        variables = model.init({"params": jax.random.key(0)}, good, train=False)
        return model.apply(
            variables, jnp.zeros(shape, dtype), **({"train": False} | arguments)
        )

    return jax.eval_shape(run)


def small(**fields):
    return ResNet((2, 1), **SMALL, **fields)


PLAIN = {"block": PlainLayer, "shortcut": None}


@pytest.mark.parametrize(
    "bad, match",
    [
        (lambda: create_model("resnet111"), "Unknown model 'resnet111'.* resnet110"),
        (lambda: create_model("resnet50.a1_in1k"), r"interop\.load_public loads"),
        (
            lambda: create_model("vit"),
            r"Unknown model 'vit'; no similar name among \d+; list_models",
        ),
        (lambda: create_model("resnet20", widen=2), "field of resnet20 'widen'; "),
        (lambda: create_model("resnet20", num_class=2), "similar: num_classes"),
        (
            lambda: apply_small(small(block=Bottleneck, block_kwargs={"group": 2})),
            "Unknown field of Bottleneck 'group'; similar: groups",
        ),
        (
            lambda: apply_small(small(block_kwargs={"groups": 2})),
            "Unknown field of BasicBlock 'groups'; available: none",
        ),
        (
            lambda: create_model("resnet20", stochastic_depth=0.5),
            r"^stochastic_depth must be rn_jax\.StochasticDepth.* not 0\.5",
        ),
        (
            lambda: apply_small(small(stochastic_depth=StochasticDepth()), train=True),
            r'^Training with stochastic depth needs rngs=\{"gates": key\} or gates',
        ),
        (
            lambda: apply_small(gates=jnp.ones(2)),
            r"^gates must have shape \[3\] or \[3, 2\], .* not \[2\]",
        ),
        (lambda: apply_small(gates=jnp.ones((3, 5))), r"not \[3, 5\]"),
        (lambda: apply_small(gates=jnp.ones((2, 3))), r"not \[2, 3\]"),
        (lambda: apply_small(gates=jnp.ones(())), r"not \[\]"),
        (
            lambda: apply_small(paths=jnp.ones((3, 5))),
            r"^paths must have shape \[3\] or \[3, 2\], .* not \[3, 5\]",
        ),
        (lambda: apply_small(shape=(2, 6, 6, 1)), "stem_conv takes 3 channels, .* 1"),
        (lambda: apply_small(shape=(6, 6, 3)), r"must be \[B, H, W, C\]"),
        (lambda: apply_small(dtype="uint8"), "normalised floating-point .* uint8"),
        (
            lambda: apply_small(small(stem="large")),
            '"small", "imagenet" or "imagenet_linear", not \'large\'',
        ),
        (
            lambda: apply_small(small(stem="imagenet_linear")),
            "to a pre-activation unit, which BasicBlock is not",
        ),
        (lambda: apply_small(small(shortcut="D")), "one of A, A_centered.* not 'D'"),
        (lambda: apply_small(small(shortcut=None)), "one of A, .* not None"),
        (lambda: apply_small(small(conv_gradient="fast")), "\"xla\", not 'fast'"),
        (
            lambda: apply_small(ResNet((1, 1), features=(8, 4))),
            "cannot go from 8 to 4 channels",
        ),
        (
            lambda: apply_small(small(**PLAIN, stochastic_depth=StochasticDepth())),
            "Stochastic depth needs shortcuts",
        ),
        (
            lambda: apply_small(small(**PLAIN), paths=jnp.ones(3)),
            "paths needs shortcuts",
        ),
    ],
)
def test_bad_input_is_one_sentence(bad, match):
    with pytest.raises(InputError, match=match) as error:
        bad()
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message


def test_init_in_training_takes_the_gates_from_its_own_key(images):
    model = small(stochastic_depth=StochasticDepth())
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), images)


def test_train_has_no_default(images):
    init = ResNet((1, 1), **SMALL).init
    with pytest.raises(TypeError, match="train"):
        jax.eval_shape(init, jax.random.key(0), images)
