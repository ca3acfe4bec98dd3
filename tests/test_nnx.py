# SPDX-License-Identifier: Apache-2.0
"""Networks in Flax's NNX, by its bridge: the same numbers as in Linen."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sizes import FAMILIES, narrow

import rn_jax
from rn_jax import StochasticDepth

pytestmark = pytest.mark.skipif(
    flax.__version__.startswith("0.11."),
    reason="the bridge of Flax 0.11 fails on these networks",
)

X = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
LABELS = np.arange(4, dtype="int32") % 3
AT_TEST = partial(nnx.Rngs, params=0)  # no stream to sample from
KINDS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


def wrapped(model, images=X, **streams):
    net = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(params=0, **streams))
    return net.lazy_init(images, train=False)


def variables_of(net):
    """As in docs/how_to/own_code.md."""
    trees = {k: nnx.to_pure_dict(nnx.state(net, kind)) for k, kind in KINDS.items()}
    return jax.tree.map(jnp.copy, trees)


def loss_of(logits):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array(LABELS))
    return losses.mean()


@pytest.mark.parametrize(
    "name, gated",
    [
        pytest.param("resnet20", False, marks=pytest.mark.slow),
        ("resnet20", True),
        pytest.param("vgg11_bn", True, marks=pytest.mark.slow),
    ],
)
def test_steps_are_those_of_linen(name, gated):
    model = narrow(name)
    if name.startswith("vgg"):
        model = model.copy(dropout=0.0)
    net = wrapped(model, dropout=2)
    gates = None
    if gated:
        gates = np.ones(model.num_blocks, "float32")
        gates[-1] = 0
    tx = optax.sgd(0.1, momentum=0.9)
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer):
        def loss(net):
            call = {"train": True, "gates": gates, "mutable": ["batch_stats"]}
            return loss_of(net(X, **call))

        value, grads = nnx.value_and_grad(loss)(net)
        optimizer.update(net, grads)
        return value

    @jax.jit
    def linen_step(variables, state):
        def loss(params):
            call = {"train": True, "gates": gates, "mutable": ["batch_stats"]}
            logits, new = model.apply({**variables, "params": params}, X, **call)
            return loss_of(logits), new["batch_stats"]

        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, stats), grads = gradient(variables["params"])
        updates, state = tx.update(grads, state)
        params = optax.apply_updates(variables["params"], updates)
        return value, {"params": params, "batch_stats": stats}, state

    variables = variables_of(net)
    shapes = jax.eval_shape(
        lambda: model.init({"params": jax.random.key(0)}, X, train=False)
    )
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    state = tx.init(variables["params"])
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    for _ in range(2):
        value, variables, state = linen_step(variables, state)
        close(step(net, optimizer), value)
    jax.tree.map(close, variables_of(net), variables)
    run = jax.jit(partial(model.apply, train=False, gates=gates))
    close(net(X, train=False, gates=gates, rngs=AT_TEST()), run(variables, X))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.values(), ids=str)
def test_logits_of_every_family_are_those_of_linen(name):
    model, shape = narrow(name), (2, 32, 32, rn_jax.models.MODELS[name].channels)
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    net = wrapped(model, images, dropout=1)
    variables = variables_of(net)
    run = jax.jit(partial(model.apply, train=False))
    expected = run({k: v for k, v in variables.items() if v}, images)
    found = nnx.jit(lambda net: net(images, train=False, rngs=AT_TEST()))(net)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gates_are_drawn_in_training_alone():
    model = narrow("resnet20", stochastic_depth=StochasticDepth(0.5))
    net = wrapped(model, gates=1)

    @nnx.jit
    def call(net):
        return net(X, train=True, mutable=["batch_stats"])

    logits = [np.asarray(call(net)) for _ in range(6)]
    assert len({array.tobytes() for array in logits}) > 1
    still = [np.asarray(net(X, train=False)) for _ in range(2)]
    np.testing.assert_array_equal(*still)


def test_sampling_at_test_is_off_without_streams():
    """The wrapper passes all its streams, which Swapout takes for sampling."""
    net = wrapped(narrow("swapout32_w4"), dropout=1)
    sampled = [np.asarray(net(X, train=False)) for _ in range(2)]
    means = [np.asarray(net(X, train=False, rngs=AT_TEST())) for _ in range(2)]
    assert np.any(sampled[0] != sampled[1])
    np.testing.assert_array_equal(*means)


def test_weights_go_through_a_file(tmp_path):
    model, path = narrow("resnet20"), tmp_path / "net.safetensors"
    first, second = wrapped(model), wrapped(model.copy(num_classes=3))
    for kind in KINDS.values():  # of another network
        state = nnx.state(second, kind)
        nnx.update(second, jax.tree.map(lambda leaf: leaf + 1, state))
    rn_jax.save(path, model, variables_of(first))
    _, loaded = rn_jax.load(path)
    for name, kind in KINDS.items():
        state = nnx.state(second, kind)
        nnx.replace_by_pure_dict(state, loaded[name])
        nnx.update(second, state)
    logits = [
        np.asarray(net(X, train=False, rngs=AT_TEST())) for net in (first, second)
    ]
    np.testing.assert_array_equal(*logits)


def test_sown_values_become_attributes_and_are_appended_to():
    net = wrapped(narrow("resnet20"))
    for calls in (1, 2):
        net(X, train=False, rngs=AT_TEST(), mutable=["intermediates"])
        found = nnx.to_pure_dict(nnx.state(net, nnx.Intermediate))
        assert len(found["stage1"]["blocks"]["residual"]) == calls
    maps = rn_jax.features(narrow("resnet20"), variables_of(net), X, ["stage1"])
    assert maps["stage1"].shape == (4, 8, 8, 4)
