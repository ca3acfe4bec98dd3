# SPDX-License-Identifier: Apache-2.0
"""VGG: layers by NumPy, what their gates do, the heads for large and small images."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from by_numpy import np_conv, np_norm

import rn_jax
from rn_jax import InputError, StochasticDepth, create_model
from rn_jax.models.layers import Conv, adaptive_average_pool, max_pool
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.vgg import VGG, VGGLayer


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("features", [4, 6])
def test_layer_by_numpy(x64, batch_norm, features):
    """Closed it is the identity; one that changes the channels ignores its gate."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 5, 4))

    def make(train):
        norm = partial(BatchNorm, use_running_average=not train)
        conv = partial(Conv, use_bias=True)
        return VGGLayer(features, conv, norm if batch_norm else None, nn.relu)

    single = x.astype("float32")
    shapes = jax.eval_shape(
        lambda: make(False).init(jax.random.key(0), single, train=False)
    )
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape), shapes)
    for train in (False, True):
        y = np_conv(x, variables["params"]["conv"])
        if batch_norm:
            s = variables["batch_stats"]["bn"]
            if train:
                s = {"mean": y.mean((0, 1, 2)), "var": y.var((0, 1, 2))}
            y = np_norm(y, variables["params"]["bn"], s)
        y = np.maximum(y, 0)
        run = jax.jit(
            lambda gate, train=train: make(train).apply(
                variables, x, gate, train=train, mutable=["batch_stats"]
            )[0]
        )
        for gate in (None, 0.0, 0.4, 1.0):
            b = 1 if gate is None or features != 4 else gate
            expected = b * y + (1 - b) * x if features == 4 else y
            found = run(None if gate is None else np.array(gate))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_which_layers_can_be_closed():
    """All but those that change the number of channels: the first of stages 1 to 4."""
    model = create_model("vgg16")
    fixed = [b.name for b in model.blocks if not b.skippable]
    assert fixed == [f"stage{s}/layer01" for s in (1, 2, 3, 4)]
    assert all(b.skippable == b.same_shape for b in model.blocks)


def test_stochastic_depth_needs_shortcuts():
    model = create_model("vgg16", stochastic_depth=StochasticDepth())
    with pytest.raises(InputError, match="needs shortcuts"):
        jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGE)


@pytest.mark.parametrize("field", ["features", "conv_dropout"])
def test_one_entry_for_each_stage(field):
    with pytest.raises(
        InputError, match=r"^features and conv_dropout must .* 5 stages"
    ):
        create_model("vgg16", **{field: (1, 1)})


IMAGE = np.zeros((1, 32, 32, 3), "float32")


def shapes_of(model):
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGE)
    return jax.tree.map(lambda leaf: leaf.shape, shapes["params"])


def test_heads():
    """Two layers of 4096 on 7x7 cells; for small images one of 512 on the mean."""
    large, small = shapes_of(create_model("vgg16")), shapes_of(create_model("vgg15"))
    assert large["fc1"]["kernel"] == (512 * 49, 4096)
    assert large["fc2"]["kernel"] == (4096, 4096) and large["head"]["kernel"][1] == 1000
    assert small["fc1"]["kernel"] == (512, 512) and small["fc1_bn"]["scale"] == (512,)
    assert small["head"]["kernel"] == (512, 10) and "fc2" not in small
    one = VGG((1, 1), features=(4, 8), stem="small", num_classes=None)
    assert "fc1" not in shapes_of(one)


def test_vgg15_has_dropout_in_its_convolutions():
    """After every layer of a stage but its last: 0.3, then 0.4; and around the fc."""
    model = create_model("vgg15").copy(features=(4, 4, 4, 4, 4), hidden=(8,))
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)
    run = partial(
        model.apply,
        train=True,
        mutable=["intermediates", "batch_stats"],
        capture_intermediates=True,
    )
    _, updates = jax.jit(run)(variables, x, rngs={"dropout": jax.random.key(1)})
    features = updates["intermediates"]
    for stage, rate in (("stage1", 0.3), ("stage2", 0.4)):
        y = np.asarray(features[stage]["layer01"]["__call__"][0])
        before = features[stage]["layer01"]["bn"]["__call__"][0]
        before = np.maximum(np.asarray(before), 0)
        zero = (y == 0) & (before > 0)
        assert abs(zero.sum() / (before > 0).sum() - rate) < 0.03
        np.testing.assert_allclose(y[y > 0], before[y > 0] / (1 - rate), rtol=1e-5)
        y = np.asarray(features[stage]["layer02"]["__call__"][0])
        before = np.asarray(features[stage]["layer02"]["bn"]["__call__"][0])
        np.testing.assert_array_equal(y, np.maximum(before, 0))
    assert len(features["Dropout_0"]["__call__"]) == 2
    off = jax.jit(partial(model.apply, train=False))
    np.testing.assert_array_equal(off(variables, x), off(variables, x))


def test_fully_connected_layers_and_their_dropout_by_numpy(random_variables):
    """Each layer takes what the dropout before it left, over 1 - rate."""
    rate = 0.4
    model = VGG((1,), num_classes=3, features=(4,), hidden=(50, 40), dropout=rate)
    variables = random_variables(model, (8, 8, 3))
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    run = partial(
        model.apply, train=True, mutable=["intermediates"], capture_intermediates=True
    )
    rngs = {"dropout": jax.random.key(1)}
    logits, updates = jax.jit(run)(variables, x, rngs=rngs)
    features = updates["intermediates"]
    p = jax.device_get(variables["params"])
    dropped = [np.asarray(y).reshape(64, -1) for y in features["Dropout_0"]["__call__"]]
    assert len(dropped) == 2
    y = np.asarray(features["fc1"]["__call__"][0]).reshape(64, -1)
    for i in range(2):
        y = np.maximum(y, 0)
        kept = dropped[i] != 0
        np.testing.assert_allclose(dropped[i], np.where(kept, y / (1 - rate), 0), 1e-4)
        assert abs(1 - kept.sum() / (y > 0).sum() - rate) < 0.05
        layer = p[("fc2", "head")[i]]
        y = dropped[i] @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(logits, y, rtol=1e-4, atol=1e-4)


def test_dense_evaluation(x64, random_variables):
    """The mean over all windows of 7x7 cells, in NumPy, and over all crops.

    Crops see zeros where a whole image has neighbours, unless the convolutions look at
    one pixel only.
    """
    model = VGG((1, 1), features=(4, 8), hidden=(6, 5), num_classes=3)
    variables = random_variables(model, (28, 28, 3), "float64")
    both = model.for_whole_images(), model
    dense, plain = (jax.jit(partial(m.apply, train=False)) for m in both)
    x = np.random.default_rng(0).normal(size=(2, 36, 40, 3))
    crops = [x[:, i : i + 28, j : j + 28] for i in (0, 4, 8) for j in (0, 4, 8, 12)]

    params = variables["params"]
    last = np.asarray(rn_jax.features(model, variables, x, ["final"])["final"])
    assert last.shape == (2, 9, 10, 8)
    scores = []
    for i in range(3):
        for j in range(4):
            y = last[:, i : i + 7, j : j + 7].reshape(2, -1)
            for name in ("fc1", "fc2"):
                y = np.maximum(y @ params[name]["kernel"] + params[name]["bias"], 0)
            scores.append(y @ params["head"]["kernel"] + params["head"]["bias"])
    found = dense(variables, x)
    np.testing.assert_allclose(found, np.mean(scores, axis=0), rtol=1e-10)

    one = crops[0]
    np.testing.assert_allclose(dense(variables, one), plain(variables, one), rtol=1e-12)
    of_crops = np.mean([plain(variables, crop) for crop in crops], axis=0)
    assert np.abs(found - of_crops).max() > 0.01

    for stage in ("stage1", "stage2"):
        kernel = params[stage]["layer01"]["conv"]["kernel"]
        kernel *= np.eye(3)[1][:, None, None, None] * np.eye(3)[1][:, None, None]
    of_crops = np.mean([plain(variables, crop) for crop in crops], axis=0)
    np.testing.assert_allclose(dense(variables, x), of_crops, rtol=1e-10)


def test_dense_evaluation_of_small_images(random_variables):
    """They must fill a window; what ends in a mean over all pixels is dense already."""
    model = VGG((1,), features=(4,), hidden=(6,), num_classes=3).for_whole_images()
    variables = random_variables(model, (14, 14, 3))
    with pytest.raises(InputError, match="maps of at least 7 pixels a side, but"):
        model.apply(variables, np.zeros((1, 12, 20, 3), "float32"), train=False)
    resnet = create_model("resnet20")
    assert resnet.for_whole_images() is resnet


@pytest.mark.parametrize("n", [1, 2, 7, 9, 14])
def test_adaptive_average_pool_by_loops(n):
    x = np.random.default_rng(0).normal(size=(2, n, n + 1, 3)).astype("float32")
    expected = np.empty((2, 7, 7, 3))
    for i in range(7):
        for j in range(7):
            rows = slice(i * n // 7, -(-(i + 1) * n // 7))
            columns = slice(j * (n + 1) // 7, -(-(j + 1) * (n + 1) // 7))
            expected[:, i, j] = x[:, rows, columns].mean(axis=(1, 2))
    np.testing.assert_allclose(adaptive_average_pool(x, 7), expected, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("padding, ceil_mode", [(0, False), (0, True), (1, False)])
def test_max_pool_by_loops(n, padding, ceil_mode):
    """Windows of 3 with stride 2; what is below 3 pixels is pooled as a whole."""
    x = np.random.default_rng(0).normal(size=(2, n, n, 3)).astype("float32")
    padded = np.pad(
        x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)), constant_values=-np.inf
    )
    size = n + 2 * padding
    starts = range(0, max(size - 3, 0) + 1, 2)
    if ceil_mode and size > 3 and (size - 3) % 2:
        starts = range(0, size - 1, 2)
    expected = [
        [padded[:, i : i + 3, j : j + 3].max(axis=(1, 2)) for j in starts]
        for i in starts
    ]
    found = max_pool(x, 3, 2, padding, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(found, np.transpose(expected, (2, 0, 1, 3)))
