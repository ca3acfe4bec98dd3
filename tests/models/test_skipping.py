# SPDX-License-Identifier: Apache-2.0
"""Open blocks alone, in a loop and in a straight line, against plain Python."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import in_training

from rn_jax.models import skipping
from rn_jax.models.preact import (
    BatchNormAfterAddition,
    ConstantScaling,
    ExclusiveGating,
    FullPreactivation,
    ReluBeforeAddition,
)
from rn_jax.models.resnet import BasicBlock, PlainLayer, ResNet
from rn_jax.models.skipping import run_open

L = 5


def block(inputs, x):
    """A layer whose weight, gate, count and update differ from block to block."""
    weight, gate, count = inputs
    y = x + gate * jnp.tanh(x @ weight)
    return y, {"kept": weight.sum() + x.sum(), "count": count + 1, "sown": y.sum()}


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(L, 4, 4))
    before = {"kept": rng.normal(size=L), "count": np.arange(L)}
    return weights, before, rng.normal(size=(3, 4)), rng.normal(size=(L, 3))


def one_by_one(weights, gates, x, kept, count, is_open):
    """In plain Python: autodiff sees the open blocks alone."""
    updates = {"kept": [], "count": [], "sown": []}
    for i in range(L):
        new = {"kept": kept[i], "count": count[i], "sown": 0.0}
        if is_open is None or is_open[i]:
            x, new = block((weights[i], gates[i], count[i]), x)
        for name, values in updates.items():
            values.append(new[name])
    return x, {name: jnp.stack(values) for name, values in updates.items()}


@pytest.mark.parametrize("in_line", [False, True], ids=["loop", "line"])
@pytest.mark.parametrize("closed", [(), (0,), (1, 4), (0, 1, 2, 3, 4), None])
@pytest.mark.parametrize(("small", "by_y"), [(4096, True), (8, False)])
def test_values_updates_and_gradients(
    x64, arrays, monkeypatch, closed, in_line, small, by_y
):
    """Closed blocks keep their updates, and pass on the gradient of these.

    Also where a block's weights are too large to be packed with its gate, and where the
    loss is a function of updates alone.
    """
    monkeypatch.setattr(skipping, "SMALL", small)
    weights, before, x, directions = arrays
    is_open = None if closed is None else ~np.isin(np.arange(L), closed)
    gates = np.linspace(0.5, 1.5, L)

    def in_rn_jax(weights, gates, x, kept):
        inputs, old = (weights, gates, before["count"]), {**before, "kept": kept}
        flags = None if is_open is None else jnp.asarray(is_open)
        return run_open(block, inputs, old, x, flags, in_line=in_line)

    def in_python(weights, gates, x, kept):
        return one_by_one(weights, gates, x, kept, before["count"], is_open)

    def loss(run, *args):
        y, updates = run(*args)
        parts = updates["kept"] * directions[:, 0] + updates["sown"] * directions[:, 1]
        return parts.sum() + (jnp.sin(y).sum() if by_y else 0), (y, updates)

    args = (weights, gates, x, before["kept"])

    def results(run):
        by_all = jax.value_and_grad(partial(loss, run), (0, 1, 2, 3), has_aux=True)
        return jax.jit(by_all)(*args)

    found, expected = results(in_rn_jax), results(in_python)
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14)
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize("in_line", [False, True], ids=["loop", "line"])
def test_a_closed_block_is_not_computed(arrays, in_line):
    weights, before, x, _ = arrays
    weights = weights.astype("float32")
    weights[[1, 3]] = np.nan

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(weights, x, is_open):
        inputs = weights, jnp.ones(L), before["count"]
        old = jax.tree.map(jnp.float32, {"kept": before["kept"]})
        return run_open(block, inputs, old, x, is_open, in_line=in_line)[0].sum()

    is_open = np.array([True, False, True, False, True])
    by_weights, by_x = gradients(weights, x.astype("float32"), is_open)
    assert np.isfinite(by_x).all()
    assert not np.any(by_weights[~is_open])
    assert np.all(np.any(by_weights[is_open], (1, 2)))
    assert np.isnan(gradients(weights, x.astype("float32"), ~is_open)[1]).all()


@pytest.mark.parametrize("in_line", [False, True], ids=["loop", "line"])
@pytest.mark.parametrize("is_open", [None, np.array([True, False] * 2 + [True])])
def test_the_weights_are_kept_once(arrays, in_line, is_open, monkeypatch):
    """The gradient reads a block's weights again instead of keeping them with it."""
    monkeypatch.setattr(skipping, "SMALL", 8)
    weights, before, x, _ = arrays

    def run(weights, x):
        inputs = weights, jnp.ones(L), before["count"]
        old = {"kept": before["kept"].astype("float32")}
        return run_open(block, inputs, old, x, is_open, in_line=in_line)[0]

    _, pull = jax.vjp(run, weights.astype("float32"), x.astype("float32"))
    kept = [leaf.shape for leaf in jax.tree.leaves(pull)]
    assert kept.count(weights.shape) == 1
    assert kept.count((L, *x.shape)) >= 1  # what each block does keep


def whiles_and_conditionals(fields, gates):
    images = jnp.zeros((2, 8, 8, 3))
    model = ResNet((3,), features=(4,), **fields)
    variables = jax.eval_shape(
        partial(model.init, train=False), {"params": jax.random.key(0)}, images
    )
    run = partial(model.apply, train=True, gates=gates, mutable=["batch_stats"])
    program = str(jax.make_jaxpr(run)(variables, images))
    return program.count("while["), program.count("cond[")


@pytest.mark.parametrize(
    ("fields", "loops"),
    [
        ({}, True),
        ({"block": PlainLayer, "shortcut": None}, True),
        ({"activation": jnp.tanh}, False),  # f(f(x)) is not f(x)
        ({"shortcut": "C"}, False),  # h is a convolution
        ({"block": BatchNormAfterAddition}, False),  # f has parameters
        ({"conv_gradient": "xla"}, False),  # forward mode
    ],
)
def test_closed_blocks_are_not_visited_where_they_are_the_identity(fields, loops):
    assert whiles_and_conditionals(fields, jnp.ones(3)) == ((1, 0) if loops else (0, 1))


def test_the_form_follows_the_unrolling():
    assert whiles_and_conditionals({"scan_unroll": 3}, jnp.ones(3)) == (0, 3)
    assert whiles_and_conditionals({"scan_unroll": 2}, jnp.ones(3))[0] == 0


def changed(block, part):
    """A subclass whose closed block halves its input."""

    def method(self, x, *args, train):
        return getattr(block, part)(self, x, *args, train=train) / 2

    return type(f"Changed{block.__name__}", (block,), {part: method})


BLOCKS = [
    (BasicBlock, "A"),
    (PlainLayer, None),
    (FullPreactivation, "B"),
    *(
        pytest.param(*block, marks=pytest.mark.slow)
        for block in (
            (ConstantScaling, "A"),
            (ExclusiveGating, "A"),
            (BatchNormAfterAddition, "A"),
            (ReluBeforeAddition, "A"),
            (FullPreactivation, "C"),
        )
    ),
]


@pytest.mark.parametrize("part", [None, "before", "shortcut", "sum", "after"])
@pytest.mark.parametrize(("block", "shortcut"), BLOCKS)
def test_closed_blocks_return_what_a_scan_of_conditionals_returns(
    random_variables, block, shortcut, part
):
    """For blocks of this library, and for subclasses that override a part."""
    if part is not None:
        block = changed(block, part)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    model = ResNet((3,), features=(4,), block=block, shortcut=shortcut)
    variables = random_variables(model, images.shape[1:])

    def logits(gradient):
        run = model.clone(conv_gradient=gradient).apply
        return run(variables, images, train=False, gates=np.float32([1, 0, 0]))

    found, expected = jax.jit(logits, static_argnums=0), logits("xla")
    np.testing.assert_allclose(found("auto"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "remat",
    [
        pytest.param("none", marks=pytest.mark.slow),
        "cheap",
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("scan_unroll", [1, 4], ids=["loop", "line"])
def test_gradients_and_statistics_are_those_of_a_scan_of_conditionals(
    x64, random_variables, remat, scan_unroll
):
    """In training, with closed blocks and dropout."""
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    model = ResNet(
        (4,),
        features=(4,),
        block=FullPreactivation,
        block_kwargs={"dropout": 0.5},
        dtype="float64",
        remat=remat,
        scan_unroll=scan_unroll,
    )
    variables = random_variables(model, images.shape[1:], "float64")
    gates = np.float32([1, 0, 0, 1])

    def gradients(by):
        loss = in_training(model.clone(conv_gradient=by), variables, images)
        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"], gates)

    found, expected = gradients("auto"), gradients("xla")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), found, expected)
