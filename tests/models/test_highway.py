# SPDX-License-Identifier: Apache-2.0
"""Highway layers by NumPy, their gates, and the networks of both papers."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from by_numpy import np_conv

from rn_jax import InputError, create_model
from rn_jax.analysis.highway import gate_sums
from rn_jax.models.highway import HighwayLayer, HighwayMLP, HighwayNet
from rn_jax.models.layers import Conv
from rn_jax.models.resnet import Block


def np_linear(x, params):
    if params["kernel"].ndim == 4:
        return np_conv(x, params)
    return x @ params["kernel"] + params["bias"]


def sigmoid(x, params):
    return 1 / (1 + np.exp(-np_linear(x, params)))


def np_highway(x, params, gate=1.0):
    """Equation 2; its gates are 1 without parameters, and C = 1 - T without its own."""
    t = sigmoid(x, params["gate"]) if "gate" in params else 1.0
    c = 1 - t if "gate" in params else 1.0
    if "carry_gate" in params:
        c = sigmoid(x, params["carry_gate"])
    h = np.maximum(np_linear(x, params["transform"]), 0)
    return gate * (t * h + c * x) + (1 - gate) * x  # a closed layer is the identity


KEY = jax.random.key(0)
CONV = partial(Conv, kernel_size=3, use_bias=True)


LAYERS = pytest.mark.parametrize(
    "linear, shape", [(CONV, (3, 5, 5, 4)), (nn.Dense, (3, 4))]
)


@LAYERS
@pytest.mark.parametrize(
    "gating, names",
    [
        ("coupled", {"gate", "transform"}),
        ("independent", {"gate", "carry_gate", "transform"}),
        ("open", {"transform"}),
    ],
)
def test_layer_by_numpy(x64, linear, shape, gating, names):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    layer = HighwayLayer(4, linear, gating=gating)
    single = x.astype("float32")
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), single, train=False))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)["params"]
    assert set(params) == names
    run = jax.jit(lambda gate: layer.apply({"params": params}, x, gate, train=False))
    for gate in (None, 0.3, 1.0):
        expected = np_highway(x, params, 1.0 if gate is None else gate)
        found = run(None if gate is None else np.array(gate))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        assert not np.allclose(expected, x)
    np.testing.assert_array_equal(run(np.array(0.0)), x)  # closed: the identity
    by_example = np.array([0.0, 0.5, 1.0])
    expected = [np_highway(x[i : i + 1], params, b) for i, b in enumerate(by_example)]
    np.testing.assert_allclose(run(by_example), np.concatenate(expected), atol=1e-12)


class ResidualLayer(Block):
    """x + relu(W x + b)."""

    def residual(self, x, *, train):
        linear = self.conv(self.features, name="transform")
        return self.activation(linear(x))

    def after(self, y, *, train):
        return y


@LAYERS
def test_gates_that_are_open(x64, linear, shape):
    """T = 1 and C = 0 is the plain layer, T = C = 1 a residual layer."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    single = x.astype("float32")

    def drawn(layer):
        shapes = jax.eval_shape(partial(layer.init, train=False), KEY, single)
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)["params"]

    layer = HighwayLayer(4, linear)
    params = drawn(layer)
    params["gate"]["bias"] = np.full(4, 1e3)
    plain = np.maximum(np_linear(x, params["transform"]), 0)
    found = layer.apply({"params": params}, x, train=False)
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-12)

    layer = HighwayLayer(4, linear, gating="independent")
    params = drawn(layer)
    params["gate"]["bias"] = params["carry_gate"]["bias"] = np.full(4, 1e3)
    own = {"params": {"transform": params["transform"]}}
    residual = ResidualLayer(4, 1, "A", linear, None, nn.relu)
    opened = HighwayLayer(4, linear, gating="open")
    gates = (None, np.array(0.0), np.array([0.0, 0.5, 1.0]))
    for gate in gates:
        expected = residual.apply(own, x, gate, train=False)
        for network, variables in ((layer, {"params": params}), (opened, own)):
            found = network.apply(variables, x, gate, train=False)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        residual.apply(own, x, train=False),
        x + np.maximum(np_linear(x, params["transform"]), 0),
        rtol=0,
        atol=1e-12,
    )

    def slopes(layer, variables):
        def loss(x, on_path):
            return (layer.apply(variables, x, None, on_path, train=False) ** 2).sum()

        return [jax.grad(loss)(x, np.array(on)) for on in (0.0, 1.0)]

    # The gradients of the two paths are those of a residual layer too.
    expected = slopes(residual, own)
    for found in (slopes(layer, {"params": params}), slopes(opened, own)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_unknown_gating_is_refused():
    with pytest.raises(InputError, match="gating must be one of coupled, independent"):
        HighwayLayer(4, nn.Dense, gating="closed").init(
            KEY, np.zeros((1, 4), "float32"), train=False
        )


def test_a_carry_gate_begins_near_the_coupled_one():
    model = create_model("highway50_mnist", depth=3, gating="independent")
    image = np.zeros((1, 28, 28, 1), "float32")
    params = jax.jit(partial(model.init, train=False))(KEY, image)["params"]
    layers = params["stage1"]["blocks"]
    assert np.all(layers["gate"]["bias"] == -2)
    assert np.all(layers["carry_gate"]["bias"] == 2)  # sigmoid(2) = 1 - sigmoid(-2)


def test_bias_of_the_gates_is_a_setting():
    for bias in (-1.0, -4.0):
        model = create_model("highway50_mnist", depth=3, gate_bias=bias)
        image = np.zeros((1, 28, 28, 1), "float32")
        params = jax.jit(partial(model.init, train=False))(jax.random.key(0), image)
        layers = params["params"]["stage1"]["blocks"]
        assert layers["gate"]["bias"].shape == (2, 50)
        assert np.all(layers["gate"]["bias"] == bias)
        assert not np.any(layers["transform"]["bias"])


@pytest.mark.parametrize("depth", [10, 100])
def test_fully_connected_networks_of_any_depth(depth):
    model = create_model("highway50_mnist", depth=depth)
    assert model.num_blocks == depth - 1
    image = np.zeros((1, 28, 28, 1), "float32")
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    hidden = (depth - 1) * 2 * (50 * 50 + 50)
    assert count == 784 * 50 + 50 + hidden + 50 * 10 + 10


@pytest.mark.parametrize(
    "model, shape",
    [
        (HighwayNet(stage_sizes=(2, 1), features=(4, 6), last_features=5), (8, 8, 3)),
        (HighwayMLP(depth=4, width=6), (5, 5, 1)),
    ],
)
def test_network_by_numpy_and_its_gate_sums(x64, random_variables, model, shape):
    variables = random_variables(model, shape, "float64")
    x = np.random.default_rng(1).normal(size=(6, *shape))
    run = partial(model.apply, train=False, mutable=["intermediates"])
    logits, updates = jax.jit(run)(variables, x)

    params, sums = variables["params"], []

    def highway(x, stage, i):
        layer = jax.tree.map(lambda leaf: leaf[i], params[f"stage{stage}"]["blocks"])
        t = 1 / (1 + np.exp(-np_linear(x, layer["gate"])))
        sums.append(t.reshape(len(x), -1).sum(axis=1))
        return np_highway(x, layer)

    if isinstance(model, HighwayNet):
        y = highway(highway(np.maximum(np_conv(x, params["conv1"]), 0), 1, 0), 1, 1)
        y = y.reshape(6, 4, 2, 4, 2, 4).max(axis=(2, 4))
        y = highway(np.maximum(np_conv(y, params["conv2"]), 0), 2, 0)
        y = np.maximum(np_conv(y, params["last_conv"]), 0).mean(axis=(1, 2))
    else:
        y = np.maximum(np_linear(x.reshape(6, -1), params["fc"]), 0)
        for i in range(3):
            y = highway(y, 1, i)
    expected = np_linear(y, params["head"])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)

    by_example, _ = gate_sums(updates["intermediates"], np.arange(6), 6)
    np.testing.assert_allclose(by_example, sums, rtol=1e-12)


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match=r"^depth must be at least 2, not 1"):
        HighwayMLP(depth=1)
    with pytest.raises(InputError, match="features and stage_sizes must have the same"):
        HighwayNet(features=(4, 8))


def test_dropout_is_where_the_recipe_has_it():
    """On the input, after each pooling and before the classifier; with rate 0.2."""
    model = HighwayNet(stage_sizes=(1, 1), features=(4, 4), last_features=6)
    x = np.ones((400, 4, 4, 3), "float32")
    key = jax.random.key(0)
    variables = jax.jit(partial(model.init, train=False))(key, x)
    run = partial(
        model.apply, train=True, mutable=["intermediates"], capture_intermediates=True
    )
    _, updates = jax.jit(run)(variables, x, rngs={"dropout": jax.random.key(1)})
    dropout = updates["intermediates"]["Dropout_0"]["__call__"]
    assert [y.shape for y in dropout] == [(400, 4, 4, 3), (400, 2, 2, 4), (400, 6)]
    values = np.asarray(dropout[0])
    np.testing.assert_allclose(np.unique(values), [0, 1 / 0.8], rtol=1e-6)
    assert abs((values == 0).mean() - 0.2) < 0.02
