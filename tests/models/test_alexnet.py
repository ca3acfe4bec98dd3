# SPDX-License-Identifier: Apache-2.0
"""AlexNet: local response normalisation and both forms by NumPy, towers, dropout."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from rn_jax import InputError, create_model
from rn_jax.models.layers import adaptive_average_pool, max_pool
from rn_jax.models.normalization import local_response_norm


def np_lrn(x):
    """Section 3.3: k = 2, n = 5, alpha = 1e-4, beta = 0.75."""
    y = np.empty_like(x)
    channels = x.shape[-1]
    for i in range(channels):
        near = x[..., max(0, i - 2) : min(channels, i + 3)]
        y[..., i] = x[..., i] / (2 + 1e-4 * (near**2).sum(axis=-1)) ** 0.75
    return y


def test_local_response_norm_by_numpy(x64):
    x = 100 * np.random.default_rng(0).normal(size=(2, 3, 3, 8))
    np.testing.assert_allclose(local_response_norm(x), np_lrn(x), rtol=1e-12)
    towers = np.concatenate([np_lrn(x[..., :4]), np_lrn(x[..., 4:])], axis=-1)
    np.testing.assert_allclose(local_response_norm(x, groups=2), towers, rtol=1e-12)
    assert not np.allclose(towers, np_lrn(x))
    single = local_response_norm(x.astype("float32"))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, np_lrn(x), rtol=1e-5)


def test_gradient_of_local_response_norm(x64):
    x, v = 100 * np.random.default_rng(0).normal(size=(2, 1, 2, 2, 8))
    total = jax.jit(lambda x: (local_response_norm(x, groups=2) ** 3).sum())
    slope = (jax.grad(total)(x) * v).sum()
    numeric = (total(x + 1e-6 * v) - total(x - 1e-6 * v)) / 2e-6
    np.testing.assert_allclose(slope, numeric, rtol=1e-6)


def np_conv_grouped(x, params, stride, padding, groups):
    kernel, bias = params["kernel"], params["bias"]
    k, width = len(kernel), kernel.shape[-1] // groups
    x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    size = (x.shape[1] - k) // stride + 1
    y = np.empty((len(x), size, size, kernel.shape[-1]))
    inputs = np.split(x, groups, axis=-1)
    for i in range(size):
        for j in range(size):
            rows = slice(i * stride, i * stride + k)
            columns = slice(j * stride, j * stride + k)
            for g, part in enumerate(inputs):
                mine = slice(g * width, (g + 1) * width)
                window = part[:, rows, columns]
                y[:, i, j, mine] = np.tensordot(window, kernel[..., mine], 3)
    return np.maximum(y + bias, 0)


def np_pool(x):
    size = (x.shape[1] - 3) // 2 + 1
    rows = [
        [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(size)]
        for i in range(size)
    ]
    return np.transpose(rows, (2, 0, 1, 3))


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_convolutions_by_numpy(random_variables, name):
    """Up to the last pooling, at 95 pixels: maps of 22 or 23, 11, 5 and 2."""
    model = create_model(name, num_classes=None)
    variables = random_variables(model, (95, 95, 3))
    variables = jax.tree.map(lambda leaf: leaf * 1.5, variables)
    x = np.random.default_rng(0).normal(size=(1, 95, 95, 3)).astype("float32")
    found = jax.jit(partial(model.apply, train=False))(variables, x)

    p, towers = variables["params"], model.towers
    norm = (lambda x: x) if towers == 1 else by_tower
    y = np_pool(norm(np_conv_grouped(x, p["conv1"], 4, 2, 1)))
    y = np_pool(norm(np_conv_grouped(y, p["conv2"], 1, 2, towers)))
    y = np_conv_grouped(y, p["conv3"], 1, 1, 1)
    y = np_conv_grouped(y, p["conv4"], 1, 1, towers)
    y = np_pool(np_conv_grouped(y, p["conv5"], 1, 1, towers))
    expected = y.mean(axis=(1, 2))
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )


def by_tower(x):
    return np.concatenate([np_lrn(part) for part in np.split(x, 2, -1)], axis=-1)


def shapes_of(model, size=64):
    image = np.zeros((1, size, size, 3), "float32")
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)


def test_images_of_any_size():
    """Parameters do not depend on the size, in either stem."""
    for name in ("alexnet", "alexnet_2012"):
        for stem, fc, hidden in (("imagenet", 6, 4096), ("small", 3, 512)):
            model = create_model(name, stem=stem)
            shapes = shapes_of(model, 32)["params"]
            assert shapes == shapes_of(model, 64)["params"]
            assert shapes["fc1"]["kernel"].shape == (fc * fc * 256, hidden)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_classifier_and_its_dropout_by_numpy(random_variables, name):
    """Dropout of 0.5 after both layers in 2012, before them in torchvision."""
    model = create_model(name, stem="small", num_classes=10)
    variables = random_variables(model, (32, 32, 3))
    x = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    run = partial(
        model.apply, train=True, mutable=["intermediates"], capture_intermediates=True
    )
    rngs = {"dropout": jax.random.key(0)}
    logits, updates = jax.jit(run)(variables, x, rngs=rngs)
    features = updates["intermediates"]
    dropped = [np.asarray(y).reshape(8, -1) for y in features["Dropout_0"]["__call__"]]
    p = jax.device_get(variables["params"])

    def layer(y, name):
        return y @ p[name]["kernel"] + p[name]["bias"]

    def dropout(y):
        found = dropped.pop(0)
        kept = found != 0
        np.testing.assert_allclose(found, np.where(kept, y / 0.5, 0), 1e-3, 1e-4)
        assert abs(kept.sum() / (y > 0).sum() - 0.5) < 0.05
        return found

    last = nn.relu(features["conv5"]["__call__"][0])
    y = np.asarray(adaptive_average_pool(max_pool(last, 3, 2), 3)).reshape(8, -1)
    for fc in ("fc1", "fc2"):
        if name == "alexnet":
            y = np.maximum(layer(dropout(y), fc), 0)
        else:
            y = dropout(np.maximum(layer(y, fc), 0))
    assert not dropped
    expected = layer(y, "head")
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * scale)


def test_biases_of_one_as_in_the_paper():
    model = create_model("alexnet_2012", stem="small")
    x = np.zeros((1, 8, 8, 3), "float32")
    params = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)["params"]
    ones = {name for name, layer in params.items() if np.all(layer["bias"] == 1)}
    assert ones == {"conv2", "conv4", "conv5", "fc1", "fc2"}
    assert abs(np.std(params["conv3"]["kernel"]) - 0.01) < 1e-4


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match=r"^towers must be 1 or 2, not 3"):
        create_model("alexnet", towers=3)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_dense_evaluation_is_the_mean_over_crops(x64, random_variables, name):
    """A step of the last map is 8 pixels; convolutions of one pixel need no padding."""
    model = create_model(name, stem="small", num_classes=3)
    variables = random_variables(model, (32, 32, 3), "float64")
    for layer, tree in variables["params"].items():
        if layer.startswith("conv"):
            middle = tree["kernel"].shape[0] // 2
            pixel = tree["kernel"][middle, middle].copy()
            tree["kernel"][:] = 0
            tree["kernel"][middle, middle] = 3 * pixel
    both = model.for_whole_images(), model
    dense, plain = (jax.jit(partial(m.apply, train=False)) for m in both)
    x = np.random.default_rng(0).normal(size=(2, 40, 48, 3))
    crops = [x[:, i : i + 32, j : j + 32] for i in (0, 8) for j in (0, 8, 16)]
    of_crops = np.array([plain(variables, crop) for crop in crops])
    scale = np.abs(of_crops - of_crops.mean(0)).max()
    found = dense(variables, x)
    np.testing.assert_allclose(found, of_crops.mean(0), rtol=0, atol=1e-10 * scale)
    one = crops[0]
    np.testing.assert_allclose(dense(variables, one), plain(variables, one), rtol=1e-12)
