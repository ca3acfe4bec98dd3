# SPDX-License-Identifier: Apache-2.0
"""Features against networks cut off by hand: NumPy's, and blocks one after another."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import np_conv, np_norm
from sizes import FAMILIES, narrow

from rn_jax import (
    FeatureInfo,
    InputError,
    create_model,
    feature_info,
    features,
    unstack,
)
from rn_jax.models.highway import HighwayMLP
from rn_jax.models.layers import Conv, max_pool
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.resnet import BasicBlock, ResNet

SMALL = ResNet((3, 2), num_classes=3, features=(4, 8))
BLOCKS = ("stage1/block01", "stage1/block02", "stage1/block03")
BLOCKS = (*BLOCKS, "stage2/block01", "stage2/block02")
NAMES = ("stem", "stage1", "stage2", "final", *BLOCKS)


def image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def by_numpy(variables, x, train):
    """The features of SMALL by name, and the mean and variance of every BatchNorm."""
    variables = jax.tree.map(np.asarray, unstack(variables))
    params, stats = variables["params"], variables["batch_stats"]

    def norm(x, params, stats):
        if train:
            stats = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
        return np_norm(x, params, stats)

    x = np_conv(x, params["stem_conv"])
    x = np.maximum(norm(x, params["stem_bn"], stats["stem_bn"]), 0)
    found = {"stem": x}
    for name in BLOCKS:
        stage, block = name.split("/")
        p, s = params[stage][block], stats[stage][block]
        stride = 2 if name == "stage2/block01" else 1
        y = np_conv(x, p["conv1"], stride)
        y = np_conv(np.maximum(norm(y, p["bn1"], s["bn1"]), 0), p["conv2"])
        y = norm(y, p["bn2"], s["bn2"])
        shortcut = x[:, ::stride, ::stride]
        more = y.shape[-1] - x.shape[-1]
        x = np.maximum(np.pad(shortcut, ((0, 0),) * 3 + ((0, more),)) + y, 0)
        found |= {name: x, stage: x}
    return found | {"final": x}


@pytest.mark.parametrize("train", [False, True])
def test_residual_features_by_numpy(x64, random_variables, train):
    variables = random_variables(SMALL, (8, 8, 3), "float64")
    x = image(4, 8, 8, 3)
    expected = by_numpy(variables, x, train)
    assert set(expected) == set(NAMES)
    call = {"train": train, "mutable": ["batch_stats"]}
    run = jax.jit(partial(features, SMALL, names=NAMES, **call))
    found, updates = run(variables, x)
    assert set(found) == set(NAMES)
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-10)
    logits, theirs = jax.jit(partial(SMALL.apply, **call))(variables, x)
    assert set(updates) == {"batch_stats"}
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), updates, theirs)
    head = variables["params"]["head"]
    pooled = np.asarray(found["final"]).mean(axis=(1, 2))
    np.testing.assert_allclose(logits, pooled @ head["kernel"] + head["bias"])


# Alone, a block's name asks for its stage's scan, and a stage's for nothing.
@pytest.mark.parametrize("names", [["stage2"], ["stage1/block03", "stem"], BLOCKS[3:4]])
@pytest.mark.parametrize("scan_unroll", [1, 3])
def test_any_names_in_the_order_given(random_variables, names, scan_unroll):
    model = SMALL.copy(scan_unroll=scan_unroll)
    variables = random_variables(model, (8, 8, 3))
    x = image(2, 8, 8, 3).astype("float32")
    found = features(model, variables, x, names)
    assert list(found) == list(names)
    for name, expected in features(SMALL, variables, x, NAMES).items():
        if name in names:
            np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_gradients_and_closed_blocks(x64, random_variables):
    """Of features in training, by the parameters and images, against single blocks."""
    variables = random_variables(SMALL, (8, 8, 3), "float64")
    gates = np.array([0.7, 0.0, 1.0, 1.0, 0.0])
    names = ("stem", "stage1/block02", "stage1/block03", "stage2")
    x = image(4, 8, 8, 3)
    weights = {name: image(4, 8, 8, 8, seed=i + 1) for i, name in enumerate(names)}

    def total(found):
        return sum(
            (y * weights[name][:, : y.shape[1], : y.shape[2], : y.shape[3]]).sum()
            for name, y in found.items()
        )

    def of_blocks(params, x):
        rest = unstack({"params": params, "batch_stats": variables["batch_stats"]})
        norm = partial(BatchNorm, use_running_average=False)

        def alone(module, name, x, **call):
            place = name.split("/")
            own = {key: tree for key, tree in rest.items()}
            for part in place:
                own = {key: tree[part] for key, tree in own.items() if part in tree}
            return module.apply(own, x, mutable=["batch_stats"], **call)[0]

        x = alone(Conv(4), "stem_conv", x)
        x = nn.relu(alone(norm(), "stem_bn", x))
        found = {"stem": x}
        for i, name in enumerate(BLOCKS):
            width, stride = (4, 1) if "stage1" in name else (8, 1 + (i == 3))
            block = BasicBlock(width, stride, "A", Conv, norm, nn.relu)
            x = alone(block, name, x, gate=gates[i], train=True)
            found[name] = x
        found["stage2"] = x
        return total({name: found[name] for name in names})

    def ours(params, x):
        whole = {**variables, "params": params}
        call = {"train": True, "gates": gates, "mutable": ["batch_stats"]}
        return total(features(SMALL, whole, x, names, **call)[0])

    compared = (variables["params"], x)
    expected = jax.jit(jax.value_and_grad(of_blocks, (0, 1)))(*compared)
    found = jax.jit(jax.value_and_grad(ours, (0, 1)))(*compared)
    close = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9)
    jax.tree.map(close, found, expected)


def test_a_closed_block_returns_its_input(random_variables):
    variables = random_variables(SMALL, (8, 8, 3))
    x = image(2, 8, 8, 3).astype("float32")
    found = features(SMALL, variables, x, NAMES, gates=[1, 0, 1, 1, 0])
    before = {"stage1/block02": "stage1/block01", "stage2/block02": "stage2/block01"}
    for closed, name in before.items():
        np.testing.assert_array_equal(found[closed], found[name])
    assert np.any(found["stage1/block03"] != found["stage1/block02"])


def test_highway_features_by_numpy(x64, random_variables):
    model = narrow("highway19", dropout=0.0)
    variables = random_variables(model, (8, 8, 3), "float64")
    x = image(2, 8, 8, 3)
    names = ("stage1/block01", "stage1/block02", "stage1", "stage2", "final")
    found = jax.device_get(jax.jit(partial(features, model, names=names))(variables, x))
    params = unstack(variables)["params"]
    x = np.maximum(np_conv(x, params["conv1"]), 0)
    for name in names[:2]:
        p = params["stage1"][name.split("/")[1]]
        t = 1 / (1 + np.exp(-np_conv(x, p["gate"])))
        x = np.maximum(np_conv(x, p["transform"]), 0) * t + x * (1 - t)
        np.testing.assert_allclose(found[name], x, atol=1e-10)
    np.testing.assert_array_equal(found["stage1"], found["stage1/block02"])
    last = np.maximum(np_conv(found["stage2"], params["last_conv"]), 0)
    np.testing.assert_allclose(found["final"], last, atol=1e-10)


def test_dense_features_by_numpy(x64, random_variables):
    """A layer's feature is what it adds; a stage's, all maps; the last is activated."""
    model = narrow("densenet40_12")
    variables = random_variables(model, (8, 8, 3), "float64")
    x = image(2, 8, 8, 3)
    names = ("stem", "stage1/layer01", "stage1/layer02", "stage1", "stage2", "final")
    found = jax.device_get(jax.jit(partial(features, model, names=names))(variables, x))
    params, stats = variables["params"], variables["batch_stats"]
    np.testing.assert_allclose(found["stem"], np_conv(x, params["stem_conv"]))
    x = found["stem"]
    for name in ("layer01", "layer02"):
        p, s = params["stage1"][name], stats["stage1"][name]
        y = np_conv(np.maximum(np_norm(x, p["bn1"], s["bn1"]), 0), p["conv1"])
        np.testing.assert_allclose(found[f"stage1/{name}"], y, atol=1e-10)
        x = np.concatenate([x, y], axis=-1)
    np.testing.assert_allclose(found["stage1"], x, atol=1e-10)
    last = np_norm(found["stage2"], params["final_bn"], stats["final_bn"])
    np.testing.assert_allclose(found["final"], np.maximum(last, 0), atol=1e-10)


def test_layers_before_residual_networks(random_variables):
    """A layer of VGG precedes its stage's pooling; AlexNet's follow their ReLU."""
    x = image(2, 16, 16, 3).astype("float32")
    vgg = narrow("vgg11")
    found = features(
        vgg, random_variables(vgg, x.shape[1:]), x, ["stage1/layer02", "stage1"]
    )
    np.testing.assert_array_equal(
        found["stage1"], max_pool(found["stage1/layer02"], 2, 2)
    )

    alexnet = create_model("alexnet", stem="small", num_classes=3)
    variables = random_variables(alexnet, x.shape[1:])
    names = ["conv3", "conv4", "conv5", "final"]
    found = features(alexnet, variables, x, names)
    for before, name in (("conv3", "conv4"), ("conv4", "conv5")):
        y = np_conv(np.asarray(found[before]), variables["params"][name])
        np.testing.assert_allclose(found[name], np.maximum(y, 0), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found["final"], max_pool(found["conv5"], 3, 2))


# --- Strides and channels -------------------------------------------------------------

# From the papers' tables.
GOLDEN = {
    "resnet20": {
        "stem": (1, 16),
        "stage1": (1, 16),
        "stage2": (2, 32),
        "final": (4, 64),
    },
    "resnet18": {"stem": (2, 64), "stage1": (4, 64), "stage2/block01": (8, 128)},
    "vgg11": {"stage1/layer01": (1, 64), "stage1": (2, 64), "final": (32, 512)},
    "alexnet_2012": {"conv1": (4, 96), "conv2": (8, 256), "conv5": (16, 256)},
    "highway10_mnist": {"stage1/block09": (None, 50), "final": (None, 50)},
    "densenet40_12": {"stage1/layer12": (1, 12), "stage1": (1, 160), "final": (4, 448)},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_strides_and_channels(name):
    found = feature_info(create_model(name))
    expected = {key: FeatureInfo(*value) for key, value in GOLDEN[name].items()}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("name", FAMILIES.values(), ids=str)
def test_every_family_has_features(name, random_variables):
    """A map before the classifier, of every stage and of every block; and as said."""
    model = narrow(name)
    info = feature_info(model)
    stages = {f"stage{block.stage}" for block in model.blocks}
    assert {"final", *stages, *(block.name for block in model.blocks)} <= set(info)
    first = [key for key in info if "/" not in key]
    assert first[-1] == "final" and list(info)[: len(first)] == first
    side = 8 if type(model) is HighwayMLP else 64
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    variables = jax.eval_shape(
        partial(model.init, train=False), {"params": jax.random.key(0)}, images
    )
    assert "features" not in variables
    found = jax.eval_shape(partial(features, model, names=info), variables, images)
    for key, feature in found.items():
        channels, stride = info[key].channels, info[key].stride
        assert feature.shape[::3] == (2, channels) or stride is None
        if stride is None:
            assert feature.shape == (2, channels)
        else:  # but for what windows without padding lose
            assert abs(feature.shape[1] - side / stride) < 2.5, key


@pytest.mark.usefixtures("optimized")
def test_what_no_feature_needs_is_not_computed(random_variables):
    model = ResNet((1, 1, 1), num_classes=3, features=(8, 16, 32))
    variables = random_variables(model, (16, 16, 3))
    x = image(2, 16, 16, 3).astype("float32")

    def flops(run):
        compiled = jax.jit(run).lower(variables, x).compile()
        return compiled.cost_analysis()["flops"]

    whole = flops(partial(model.apply, train=False))
    first = flops(partial(features, model, names=["stage1"]))
    last = flops(partial(features, model, names=["final"]))
    assert first < 0.6 * whole < last <= whole


def test_unknown_names(random_variables):
    variables = random_variables(SMALL, (8, 8, 3))
    with pytest.raises(InputError, match=r"^Unknown feature 'stage3'; similar: stage"):
        features(SMALL, variables, jnp.zeros((1, 8, 8, 3)), ["stage3"])
