# SPDX-License-Identifier: Apache-2.0
"""Dense blocks by NumPy, their gates, memory and dropout; networks by (L, k, theta)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import np_conv, np_norm

import rn_jax
from rn_jax import InputError
from rn_jax.models.densenet import (
    DenseBlock,
    DenseLayer,
    DenseNet,
    Transition,
    build_densenet,
)
from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm

K = 3


def np_relu_norm(x, params, stats, train):
    if train:
        stats = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
    return np.maximum(np_norm(x, params, stats), 0)


def np_dense_block(x, variables, gates, bottleneck, train):
    """x_l = H_l([x_0, ..., x_{l-1}]), equation 2, with a gate on each x_l."""
    for l, gate in enumerate(gates, start=1):  # noqa: E741 - the paper's letter
        p = variables["params"][f"layer{l:02d}"]
        s = variables["batch_stats"][f"layer{l:02d}"]
        y = np_conv(np_relu_norm(x, p["bn1"], s["bn1"], train), p["conv1"])
        if bottleneck:
            y = np_conv(np_relu_norm(y, p["bn2"], s["bn2"], train), p["conv2"])
        x = np.concatenate([x, gate * y], axis=-1)
    return x


def make_block(bottleneck, train, size=3, remat="none", dropout=0.0):
    norm = partial(BatchNorm, use_running_average=not train)
    layer = partial(DenseLayer, K, bottleneck, dropout, Conv, norm, nn.relu)
    return DenseBlock(layer, size, remat)


def random_block(x, bottleneck):
    rng = np.random.default_rng(0)
    block = make_block(bottleneck, False)
    shapes = jax.eval_shape(lambda: block.init(KEY, x.astype("float32"), train=False))
    variables = jax.tree.map(lambda leaf: rng.uniform(0.2, 1, leaf.shape), shapes)
    variables["params"] = jax.tree.map(
        lambda leaf: leaf - 0.6 if leaf.ndim == 4 else leaf, variables["params"]
    )
    return variables


@pytest.mark.parametrize("bottleneck", [False, True])
def test_block_by_numpy(x64, bottleneck):
    x = np.random.default_rng(1).normal(size=(3, 5, 5, 4))
    variables = random_block(x, bottleneck)
    for train in (False, True):
        run = jax.jit(
            lambda gates, train=train: make_block(bottleneck, train).apply(
                variables, x, gates, train=train, mutable=["batch_stats"]
            )[0]
        )
        for gates in (None, [1.0, 1, 1], [1, 0, 0.5], [0, 0, 0]):
            b = [1, 1, 1] if gates is None else gates
            expected = np_dense_block(x, variables, b, bottleneck, train)
            found = run(None if gates is None else np.array(gates, "float64"))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
            # What was there before is there unchanged; closed layers add zeros.
            np.testing.assert_array_equal(found[..., :4], x)
            for i, gate in enumerate(b):
                new = found[..., 4 + K * i : 4 + K * (i + 1)]
                assert np.any(new) == (gate != 0)


def test_gates_of_examples_and_subsets(x64):
    """Half a batch through a layer is the layer on that half, with its statistics."""
    x = np.random.default_rng(1).normal(size=(4, 5, 5, 4))
    variables = random_block(x, True)
    run = partial(make_block(True, False).apply, variables, train=False)
    both = run(x, np.array([[1.0, 0, 0.5, 1], [0, 1, 1, 0], [1, 1, 1, 1]]))
    for i, gates in enumerate(([1, 0, 1], [0, 1, 1], [0.5, 1, 1], [1, 0, 1])):
        expected = np_dense_block(x[i : i + 1], variables, gates, True, False)
        np.testing.assert_allclose(both[i : i + 1], expected, rtol=0, atol=1e-10)
    halves = np.array([[2, 0], [1, 3], [0, 1]])
    subset = rn_jax.Subset(halves, np.full((3, 2), 2.0))
    found = run(x, subset)
    for i in range(4):
        gates = 2.0 * (halves == i).any(axis=1)
        expected = np_dense_block(x[i : i + 1], variables, gates, True, False)
        np.testing.assert_allclose(found[i : i + 1], expected, rtol=0, atol=1e-10)


def test_layers_computed_again_have_the_same_gradients(x64):
    x = np.random.default_rng(1).normal(size=(3, 5, 5, 4))
    variables = random_block(x, True)

    def gradients(remat):
        def loss(params, x, gates):
            y, updates = make_block(True, True, remat=remat).apply(
                {**variables, "params": params},
                x,
                gates,
                train=True,
                mutable=["batch_stats"],
            )
            return (y**2).sum(), updates

        gates = np.array([1.0, 0, 1])
        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(
            variables["params"], x, gates
        )

    one, two = gradients("none"), gradients("all")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), one, two
    )
    closed = two[0][0]["layer02"]  # the branch that the gate closed
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(closed))


@pytest.mark.slow
def test_layers_computed_again_on_several_devices():
    """Synchronised BatchNorm within the second computation, against one device."""
    x = np.random.default_rng(1).normal(size=(4, 5, 5, 4)).astype("float32")
    variables = jax.tree.map(np.float32, random_block(x, True))

    def step(axis_name, x):
        norm = partial(BatchNorm, use_running_average=False, axis_name=axis_name)
        layer = partial(DenseLayer, K, True, 0.0, Conv, norm, nn.relu)

        def loss(params):
            y, _ = DenseBlock(layer, 2, "all").apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return (y**2).sum()

        grads = jax.grad(loss)(variables["params"])
        return grads if axis_name is None else jax.lax.psum(grads, axis_name)

    whole = jax.jit(partial(step, None))(x)
    halves = jax.pmap(partial(step, "devices"), axis_name="devices")(
        x.reshape(2, 2, *x.shape[1:])
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a[0], b, rtol=1e-4, atol=1e-4 * np.abs(b).max()
        ),
        halves,
        whole,
    )


def test_layers_computed_again_drop_the_same_values(x64):
    """The gradient is that of the very function whose value was taken."""
    x, v = np.random.default_rng(1).normal(size=(2, 3, 5, 5, 4))
    variables = random_block(x, True)

    @jax.jit
    def loss(x):
        y = make_block(True, False, remat="all", dropout=0.5).apply(
            variables, x, train=True, rngs={"dropout": jax.random.key(0)}
        )
        return (y[..., 4:] ** 2).sum()

    slope = (jax.grad(loss)(x) * v).sum()
    numeric = (loss(x + 1e-6 * v) - loss(x - 1e-6 * v)) / 2e-6
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)


def test_transition_by_numpy(x64):
    x = np.random.default_rng(1).normal(size=(3, 6, 6, 4))
    norm = partial(BatchNorm, use_running_average=True)
    transition = Transition(2, 0.0, Conv, norm, nn.relu)
    shapes = jax.eval_shape(
        lambda: transition.init(KEY, x.astype("float32"), train=False)
    )
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.2, 1, leaf.shape), shapes)
    p, s = variables["params"], variables["batch_stats"]
    y = np_conv(np_relu_norm(x, p["bn"], s["bn"], False), p["conv"])
    expected = y.reshape(3, 3, 2, 3, 2, 2).mean(axis=(2, 4))
    found = transition.apply(variables, x, train=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bottleneck", [True, False])
def test_dropout_is_after_every_convolution_but_the_first(bottleneck):
    model = DenseNet((1, 1), growth_rate=8, bottleneck=bottleneck, dropout=0.2)
    x = np.random.default_rng(0).normal(size=(64, 4, 4, 3)).astype("float32")
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), x)
    run = partial(
        model.apply,
        train=True,
        mutable=["intermediates", "batch_stats"],
        capture_intermediates=True,
    )
    _, updates = jax.jit(run)(variables, x, rngs={"dropout": jax.random.key(1)})
    features = updates["intermediates"]
    layer = features["stage1"]["layer01"]
    convolutions = ("conv1", "conv2")[: 1 + bottleneck]
    dropped = [
        *((layer[name], layer["Dropout_0"], i) for i, name in enumerate(convolutions)),
        (features["transition1"]["conv"], features["transition1"]["Dropout_0"], 0),
    ]
    for conv, drop, call in dropped:
        before = np.asarray(conv["__call__"][0])
        after = np.asarray(drop["__call__"][call])
        kept = after != 0
        assert abs(kept.mean() - 0.8) < 0.03
        np.testing.assert_allclose(after[kept], before[kept] / 0.8, rtol=1e-5)
    stem = features["stem_conv"]["__call__"][0]
    first = features["stage1"]["__call__"][0]
    np.testing.assert_array_equal(first[..., :16], stem)


def test_networks_by_depth_and_growth_rate():
    """Basic and B have 16 channels first, BC 2 k; C keeps floor(theta m)."""
    basic = build_densenet(depth=40, growth_rate=12)
    assert (basic.stage_sizes, basic.stem_features) == ((12, 12, 12), 16)
    b = build_densenet(depth=100, growth_rate=12, bottleneck=True)
    assert (b.stage_sizes, b.stem_features) == ((16, 16, 16), 16)
    c = build_densenet(depth=40, growth_rate=12, compression=0.5)
    assert (c.stem_features, c.compression) == (16, 0.5)
    both = build_densenet(depth=100, growth_rate=12, bottleneck=True, compression=0.5)
    assert both.stem_features == 24
    for depth, bottleneck in ((41, False), (43, True), (4, False)):
        with pytest.raises(InputError, match=f"n . 4, not {depth}"):
            build_densenet(depth=depth, growth_rate=12, bottleneck=bottleneck)


# Channels at the end of each dense block, from the definition by plain arithmetic.
CHANNELS = {
    "densenet40_12": (160, 304, 448),
    "densenet_bc100_12": (216, 300, 342),
    "densenet_bc250_24": (1032, 1500, 1734),
    "densenet_bc190_40": (1320, 1900, 2190),
}


@pytest.mark.parametrize("name", ["densenet40_12", "densenet_bc100_12"])
def test_channels_at_the_end_of_each_block(name):
    channels_are_those_of_the_paper(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet_bc250_24", "densenet_bc190_40"])
def test_channels_at_the_end_of_each_block_of_deep_networks(name):
    channels_are_those_of_the_paper(name)


def channels_are_those_of_the_paper(name):
    model = rn_jax.create_model(name)
    x = np.zeros((1, 8, 8, 3), "float32")
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), x)
    params = shapes["params"]
    ends = [params[f"transition{i}"]["bn"]["scale"].shape[0] for i in (1, 2)]
    ends.append(params["final_bn"]["scale"].shape[0])
    assert tuple(ends) == CHANNELS[name]


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_memory_grows_linearly_with_depth_where_layers_are_computed_again():
    """Twice the layers: near twice the memory, where the naive block takes more."""

    def temporary_bytes(size, remat):
        x = np.zeros((8, 16, 16, 8), "float32")
        block = make_block(False, True, size, remat)
        variables = jax.eval_shape(partial(block.init, train=True), KEY, x)

        def loss(params, stats, x):
            variables = {"params": params, "batch_stats": stats}
            y, updates = block.apply(variables, x, train=True, mutable=["batch_stats"])
            return (y**2).sum(), updates

        step = jax.jit(jax.grad(loss, has_aux=True))
        program = step.lower(variables["params"], variables["batch_stats"], x)
        return program.compile().memory_analysis().temp_size_in_bytes

    growth = {
        remat: temporary_bytes(16, remat) / temporary_bytes(8, remat)
        for remat in ("none", "all")
    }
    assert growth["all"] < 2.5 < 3 < growth["none"]


KEY = jax.random.key(0)


class CountingNorm(nn.Module):
    """x times a scale; counts its calls and sows a loss."""

    @nn.compact
    def __call__(self, x):
        calls = self.variable("calls", "n", jnp.zeros, (), jnp.int32)
        if self.is_mutable_collection("calls"):
            calls.value += 1
        self.sow("losses", "size", jnp.square(x).mean())
        if self.has_rng("noise"):
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return x * self.param("scale", nn.initializers.ones, (1, 1, 1, x.shape[-1]))


def test_layers_computed_again_keep_and_sow_in_any_collection():
    x = np.random.default_rng(1).normal(size=(2, 3, 3, 2)).astype("float32")

    def block(remat):
        layer = partial(DenseLayer, K, False, 0.0, Conv, CountingNorm, nn.relu)
        return DenseBlock(layer, 2, remat)

    variables = block("none").init(KEY, x, train=False)
    variables = {name: variables[name] for name in ("params", "calls")}

    def gradients(remat, rngs):
        def loss(params):
            y, updates = block(remat).apply(
                {**variables, "params": params},
                x,
                jnp.array([0.0, 1.0]),
                train=True,
                rngs=rngs,
                mutable=["calls", "losses"],
            )
            sown = sum(jax.tree.leaves(updates["losses"]))
            return jnp.square(y).sum() + sown, updates

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    whole, again = (gradients(remat, {}) for remat in ("none", "all"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), again, whole)
    calls = [again[1]["calls"][name]["bn1"]["n"] for name in ("layer01", "layer02")]
    assert calls == [1, 2]  # `init` called both; a closed layer is not computed
    noisy, _ = gradients("all", {"noise": KEY})
    assert not np.allclose(
        noisy["layer02"]["bn1"]["scale"], again[0]["layer02"]["bn1"]["scale"]
    )
