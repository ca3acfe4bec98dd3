# SPDX-License-Identifier: Apache-2.0
"""FractalNet: the expansion rule, joins, drop-path, and columns taken out of it."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import np_conv, np_norm

import rn_jax
from rn_jax import InputError, create_model, train
from rn_jax.models.fractalnet import FractalNet, join, join_inputs, sample_drop_path

TINY = {"features": (4, 6), "num_classes": 3}


def test_columns_have_the_convolutions_of_the_expansion_rule():
    """Column c has 2^(c-1), the block 2^C - 1; a join has 2 to C inputs."""
    for columns in range(1, 6):
        inputs = join_inputs(columns)
        for c in range(1, columns + 1):
            mine = [i for i in inputs if i.column == c]
            assert sum(i.layers for i in mine) == 2 ** (c - 1)
            # They follow each other from the block's input to its last join.
            assert [i.start for i in mine] == [0, *(i.end for i in mine)][:-1]
            assert mine[-1].end == inputs[-1].end
        assert [i.name for i in inputs] == sorted({i.name for i in inputs})
    sizes = [[i.end for i in join_inputs(4)].count(end) for end in (1, 2, 3, 4)]
    assert sizes == [2, 3, 2, 4]


def expanded(columns, z, layer):
    """f_C by its recursion: the inputs of its last join, which are not yet joined.

    `layer(column, z)` is the next convolution of a column, counted from the deepest, so
    that f_C is the same in f_{C+1}; joins that follow each other are one.
    """
    if columns == 1:
        return [layer(0, z)]
    halfway = expanded(columns - 1, z, layer)
    twice = expanded(columns - 1, np.mean(halfway, axis=0), layer)
    return [*twice, layer(columns - 1, z)]


def by_numpy(model, variables, images):
    """The whole network at test, every block by the recursion of the paper."""
    params, stats = variables["params"], variables["batch_stats"]
    x = images
    for stage in sorted(params.keys() - {"head"}):
        queues = {}
        for i in join_inputs(model.columns):
            layers = [(i.name, n) for n in range(1, i.layers + 1)]
            queues.setdefault(model.columns - i.column, []).extend(layers)

        def layer(column, z, p=params[stage], s=stats[stage], queues=queues):
            name, n = queues[column].pop(0)
            y = np_conv(z, p[name][f"conv{n}"])
            return np.maximum(np_norm(y, p[name][f"bn{n}"], s[name][f"bn{n}"]), 0)

        inputs = expanded(model.columns, x, layer)
        assert not any(queues.values())
        x = np.mean([np_max_pool(y) for y in inputs], axis=0)
    head = params["head"]
    return x.mean((1, 2)) @ head["kernel"] + head["bias"]


def np_max_pool(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def in_double(random_variables, model, size=8):
    variables = random_variables(model, (size, size, 3))
    images = np.random.default_rng(0).normal(size=(2, size, size, 3))
    return jax.tree.map(lambda leaf: np.asarray(leaf, "float64"), variables), images


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_network_by_numpy(x64, random_variables, columns):
    model = FractalNet(columns=columns, **TINY)
    variables, images = in_double(random_variables, model)
    found = jax.jit(partial(model.apply, train=False))(variables, images)
    expected = by_numpy(model, variables, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_columns_alone(x64, random_variables):
    """By gates, as a network of its own, and by NumPy: convolutions one after another.

    Whatever the other columns hold has no effect.
    """
    model = FractalNet(columns=3, **TINY)
    variables, images = in_double(random_variables, model)
    apply = jax.jit(partial(model.apply, train=False))
    whole = apply(variables, images)
    for column in (1, 2, 3):
        alone = model.copy(column=column)
        x = images
        broken = jax.tree.map(np.copy, variables)
        for stage in ("stage1", "stage2"):
            p, s = variables["params"][stage], variables["batch_stats"][stage]
            mine = join_inputs(3, column)
            for i in mine:
                for n in range(1, i.layers + 1):
                    y = np_conv(x, p[i.name][f"conv{n}"])
                    stats = s[i.name][f"bn{n}"]
                    x = np.maximum(np_norm(y, p[i.name][f"bn{n}"], stats), 0)
            x = np_max_pool(x)
            for name in p.keys() - {i.name for i in mine}:
                tree = broken["params"][stage]
                tree[name] = jax.tree.map(lambda leaf: leaf * np.nan, tree[name])
        head = variables["params"]["head"]
        expected = x.mean((1, 2)) @ head["kernel"] + head["bias"]
        gates = model.column_gates(column)
        found = apply(broken, images, gates=gates)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
        found = jax.jit(partial(alone.apply, train=False))(variables, images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
        assert not np.allclose(found, whole)
    with pytest.raises(InputError, match="column must be from 1 to 3, not 4"):
        model.column_gates(4)


def test_join_is_the_mean_of_its_live_inputs():
    x = np.random.default_rng(0).normal(size=(3, 2, 1, 1, 4)).astype("float32")
    inputs = list(map(jnp.asarray, x))
    np.testing.assert_allclose(join(inputs, None), x.mean(0), rtol=1e-6)
    for gates in ([1, 0, 1], [0, 1, 0], [0, 0, 0], [0.5, 1, 0]):
        live = jnp.array(gates, jnp.float32)
        expected = np.tensordot(gates, x, 1) / (sum(gates) or 1)
        np.testing.assert_allclose(join(inputs, live), expected, rtol=1e-5)
        np.testing.assert_allclose(join(inputs, live[:, None]), expected, rtol=1e-5)
    by_example = jnp.array([[1, 0], [1, 1], [0, 1]], jnp.float32)
    found = join(inputs, by_example)
    np.testing.assert_allclose(found[0], (x[0, 0] + x[1, 0]) / 2, rtol=1e-5)
    np.testing.assert_allclose(found[1], (x[1, 1] + x[2, 1]) / 2, rtol=1e-5)


def draws(count, **fields):
    keys = jax.random.split(jax.random.key(0), count)
    sample = partial(sample_drop_path, columns=4, blocks=2, **fields)
    return np.asarray(jax.jit(jax.vmap(sample))(keys)).reshape(count, 2, -1)


def test_global_drop_path_keeps_one_column_of_the_whole_network():
    model = FractalNet(columns=4, **TINY)
    columns = [np.asarray(model.column_gates(c)).reshape(2, -1) for c in range(1, 5)]
    found = draws(2000, global_share=1.0)
    shares = [np.mean([(draw == c).all() for draw in found]) for c in columns]
    np.testing.assert_allclose(shares, 0.25, atol=0.04)
    assert sum(shares) == pytest.approx(1)
    half = draws(2000)
    is_global = [any((draw == c).all() for c in columns) for draw in half]
    # Local draws are single columns in both blocks only rarely.
    assert abs(np.mean(is_global) - 0.5) < 0.05


def test_local_drop_path_keeps_an_input_of_every_join_in_use():
    """The last join: each of 4 inputs is dropped with 0.15, and one always survives."""
    inputs = join_inputs(4)
    ends = np.array([i.end for i in inputs])
    found = draws(4000, global_share=0.0)
    assert np.isin(found, (0, 1)).all()
    last = found[:, :, ends == 4]
    rescued = 0.15**4 / 4
    np.testing.assert_allclose(last.mean((0, 1)), 0.85 + rescued, atol=0.015)
    assert abs(np.corrcoef(last[:, 0, 0], last[:, 1, 0])[0, 1]) < 0.06
    rare = draws(4000, global_share=0.0, rate=0.9)[:, :, ends == 4]
    assert rare.any(-1).all()
    np.testing.assert_allclose(rare.mean((0, 1)), 0.1 + 0.9**4 / 4, atol=0.02)
    # An input is open only if what it leads to is used; a join in use has one.
    for draw in found.reshape(-1, len(inputs)):
        used = {4} | {i.start for i, live in zip(inputs, draw, strict=True) if live}
        for end in range(1, 5):
            assert draw[ends == end].any() == (end in used)


def test_pruning_changes_no_value(random_variables):
    """Inputs that lead to dropped ones alone may be computed or not."""
    model = FractalNet(columns=3, **TINY)
    variables = random_variables(model, (8, 8, 3))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    apply = jax.jit(partial(model.apply, train=False))
    gates = np.ones((2, 5), "float32")
    gates[:, [2, 3, 4]] = [1, 0, 0]  # of the last join, the first column alone
    closed = gates.copy()
    closed[:, :2] = 0
    found = [apply(variables, images, gates=g.ravel()) for g in (gates, closed)]
    np.testing.assert_array_equal(*found)


def test_training_draws_gates_by_its_key(random_variables):
    """Those of the mini-batch; with the same gates as an argument it is the same."""
    dropout = {"dropout": (0.0, 0.5)}
    model = FractalNet(columns=3, drop_path=0.15, global_share=0.5, **dropout, **TINY)
    variables = random_variables(model, (8, 8, 3))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    run = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    rngs = {"gates": jax.random.key(3), "dropout": jax.random.key(4)}
    with pytest.raises(InputError, match=r"^Training with drop-path needs rngs"):
        model.apply(variables, images, train=True, mutable=["batch_stats"])
    given = jax.random.bernoulli(jax.random.key(1), 0.7, (10,)).astype("float32")
    one, _ = run(variables, images, gates=given, rngs=rngs)
    two, _ = run(
        variables, images, gates=given, rngs={**rngs, "gates": rngs["dropout"]}
    )
    np.testing.assert_array_equal(one, two)
    logits = [
        run(variables, images, rngs={**rngs, "gates": jax.random.key(i)})[0]
        for i in range(4)
    ]
    assert any(not np.array_equal(logits[0], other) for other in logits[1:])
    # At test, every input is live.
    at_test = model.apply(variables, images, train=False)
    plain = model.copy(drop_path=0.0).apply(variables, images, train=False)
    np.testing.assert_allclose(at_test, plain, rtol=0, atol=1e-4)


def test_closed_inputs_keep_their_statistics(random_variables):
    model = FractalNet(columns=2, **TINY)
    variables = random_variables(model, (8, 8, 3))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    run = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updates = run(variables, images, gates=model.column_gates(1))
    for stage in ("stage1", "stage2"):
        before, after = (v["batch_stats"][stage] for v in (variables, updates))
        for i in join_inputs(2):
            same = jax.tree.map(np.array_equal, before[i.name], after[i.name])
            assert all(jax.tree.leaves(same)) == (i.column == 2)


def test_published_sizes():
    """Table 3, to 0.1 million, with channels from 16 to 128 and 100 classes."""
    published = {1: 0.3, 2: 0.8, 3: 2.1, 4: 4.8, 5: 10.2, 6: 21.1}
    widths = (3, 16, 32, 64, 128, 128)
    for columns, millions in published.items():
        first, others = columns, 2**columns - 1 - columns
        total = 128 * 100 + 100
        for before, width in itertools.pairwise(widths):
            total += 9 * width * (first * before + others * width)
            total += 2 * width * (first + others)
        assert round(total / 1e6, 1) == millions
        if columns in (2, 3, 4):
            model = create_model(
                f"fractalnet{5 * 2 ** (columns - 1)}_16", num_classes=100
            )
            image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
            init = partial(model.init, train=False)
            params = jax.eval_shape(init, jax.random.key(0), image)["params"]
            assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total


def test_what_it_rejects():
    for fields, message in (
        ({"dropout": (0.1,)}, "dropout must have one entry for each of 2 blocks"),
        ({"column": 4}, "column must be None or at most 3"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
        ({"global_share": 2.0}, r"global_share must be in \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=message):
            FractalNet(**TINY, **fields)
    images = jnp.zeros((1, 8, 8, 3))
    model = FractalNet(**TINY, stochastic_depth=rn_jax.StochasticDepth())
    with pytest.raises(InputError, match="Stochastic depth needs shortcuts"):
        model.init(jax.random.key(0), images, train=False)
    with pytest.raises(InputError, match="paths needs shortcuts"):
        FractalNet(**TINY).init(
            jax.random.key(0), images, train=False, paths=jnp.ones(10)
        )


def test_a_training_step_draws_the_gates_of_drop_path():
    key = jax.random.key(5)
    model = FractalNet(columns=3, drop_path=0.5, global_share=0.25, **TINY)
    draw = partial(train.draw_gates, key, batch_size=8, first_index=0, from_step=2)
    gates, shares = draw(model, step=jnp.int32(2))
    expected = sample_drop_path(key, 3, 2, rate=0.5, global_share=0.25)
    np.testing.assert_array_equal(gates, expected)
    np.testing.assert_array_equal(shares, expected)
    assert np.all(draw(model, step=jnp.int32(1))[0] == 1)
    for other in (model.copy(drop_path=0.0), model.copy(column=3)):
        assert draw(other, step=jnp.int32(2))[0] is None
