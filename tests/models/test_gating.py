# SPDX-License-Identifier: Apache-2.0
"""Gates and paths: what is computed, what is not, and every gradient."""

import itertools
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rn_jax import InputError, StochasticDepth, block_variables
from rn_jax.models import resnet
from rn_jax.models.densenet import DenseNet
from rn_jax.models.highway import HighwayMLP
from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.resnet import BasicBlock, Block, PlainLayer, ResNet
from rn_jax.models.trunk import Stage

B, SIZE = 3, 6
IMAGE = (SIZE, SIZE, 3)

# Three same-shape blocks in scans of two and one, and a transition: L = 4.
small = partial(ResNet, stage_sizes=(2, 2), num_classes=3, features=(4, 8))
plain = partial(small, block=PlainLayer, shortcut=None)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(B, *IMAGE)).astype("float32")


def make_step(model, images, train=True):
    """step(variables, gates) -> (loss, (logits, stats)), (by params, by gates)."""
    labels = jnp.arange(B) % 3

    def loss(params, gates, stats):
        logits, updates = model.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=train,
            gates=gates,
            mutable=["batch_stats"],
        )
        log_probs = nn.log_softmax(logits)
        value = -jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean()
        return value, (logits, updates["batch_stats"])

    @jax.jit
    def step(variables, gates):
        by = (0,) if gates is None else (0, 1)
        return jax.value_and_grad(loss, by, has_aux=True)(
            variables["params"], gates, variables["batch_stats"]
        )

    return step


def assert_close(ours, theirs, rtol):
    """Every leaf to `rtol` of its largest element."""

    def check(path, a, b):
        error = np.abs(np.asarray(a) - b).max() / max(np.abs(b).max(), 1e-30)
        assert error <= rtol, f"{jax.tree_util.keystr(path)}: {error}"

    jax.tree_util.tree_map_with_path(check, ours, theirs)


def all_zero(tree):
    return all(not np.any(leaf) for leaf in jax.tree.leaves(tree))


def equal(a, b):
    same = jax.tree.map(np.array_equal, a, b)
    return all(jax.tree.leaves(same))


# --- A closed block -------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
def test_closed_block_is_its_shortcut_bit_for_bit(random_variables, train):
    norm = partial(BatchNorm, use_running_average=not train)
    parts = {"shortcut_kind": "A", "conv": Conv, "norm": norm, "activation": nn.relu}
    transition = BasicBlock(8, 2, **parts)
    stage = Stage(partial(BasicBlock, **parts), None, 3, 4, 1, 1)

    x = np.random.default_rng(0).normal(size=(B, 6, 6, 4)).astype("float32")

    def initialise(module, *args):
        shapes = jax.eval_shape(
            lambda: module.init(jax.random.key(0), x, *args, train=train)
        )
        return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)

    @jax.jit
    def both(variables, x, gates):
        run = partial(
            transition.apply, variables[0], train=train, mutable="batch_stats"
        )
        a, stats_a = run(x, gates[0])
        before = nn.relu(x)  # as the output of a stem or a block
        b, stats_b = stage.apply(
            variables[1], before, gates, None, train=train, mutable="batch_stats"
        )
        shortcut = jnp.pad(x[:, ::2, ::2], ((0, 0),) * 3 + ((0, 4),))
        return (a, b), (nn.relu(shortcut), before), (stats_a, stats_b)

    variables = initialise(transition), initialise(stage, None, None)
    outputs, shortcuts, stats = both(variables, x, jnp.zeros(3))
    assert equal(outputs, shortcuts)
    assert equal(stats, tuple({"batch_stats": v["batch_stats"]} for v in variables))
    open_, shortcuts, _ = both(variables, x, jnp.ones(3))
    assert not equal(open_, shortcuts)


@pytest.fixture(
    scope="module",
    params=["A", *(pytest.param(p, marks=pytest.mark.slow) for p in ("B", "plain"))],
)
def gated_step(request, images, random_variables):
    """(model, variables, step) in float32, for gates [L]: compiled once."""
    if request.param == "plain":
        model = plain()
    else:
        model = small(shortcut=request.param)
    return model, random_variables(model, IMAGE), make_step(model, images)


def test_closed_blocks_have_no_gradient_and_keep_their_statistics(gated_step):
    model, variables, step = gated_step
    for closed in itertools.product((False, True), repeat=3):
        closed = np.resize(closed, model.num_blocks)
        gates = 1 - closed.astype("float32")
        (_, (_, stats)), (by_params, by_gates) = step(variables, gates)
        for info in model.blocks:
            grads = block_variables({"params": by_params}, info.index)["params"]
            before, after = (
                block_variables({"batch_stats": tree}, info.index)["batch_stats"]
                for tree in (variables["batch_stats"], stats)
            )
            shortcut = "shortcut" in grads  # a projection is open always
            if shortcut:
                assert not all_zero(grads.pop("shortcut"))
                assert not equal(before.pop("shortcut"), after.pop("shortcut"))
            if info.skippable and closed[info.index]:
                assert all_zero(grads)
                assert equal(before, after)
                assert by_gates[info.index] == 0
            else:
                for leaf in jax.tree.leaves(grads):
                    assert np.any(leaf)
                assert not equal(before, after)
                assert (by_gates[info.index] != 0) == info.skippable


def test_closed_blocks_are_not_computed(gated_step):
    # A branch that was multiplied by 0 would spread its NaN.
    model, variables, step = gated_step
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    spoilt = params["stage2"]["blocks"]
    spoilt = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), spoilt)
    params["stage2"]["blocks"] = spoilt
    gates = np.ones(model.num_blocks, "float32")
    first = next(b.index for b in model.blocks if b.stage == 2) + 1
    gates[first:] = 0
    results = step({**variables, "params": params}, gates)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(results))
    assert np.isnan(step({**variables, "params": params}, gates**0)[0][0])


@pytest.mark.usefixtures("optimized")
def test_conditionals_are_in_the_compiled_step(gated_step):
    model, variables, step = gated_step
    gates = np.ones(model.num_blocks, "float32")
    fresh = jax.jit(lambda *args: step(*args))  # not compiled before, for other tests

    def conditionals(gates):
        text = fresh.lower(variables, gates).compile().as_text()
        return len(re.findall(r" conditional\(", text))

    # One forward, one where the forward's cheap part is computed again, and one
    # backward, for each block outside a loop. The others are in loops over open blocks,
    # or, if there is but one, in a straight line of a conditional each way.
    apart = [b for b in model.blocks if b.skippable and b.apart]
    looped = [b.stage for b in model.blocks if not b.apart]
    single = [stage for stage in set(looped) if looped.count(stage) == 1]
    assert (len(apart), single) == (0 if model.shortcut is None else 1, [2])
    assert conditionals(gates) == 3 * len(apart) + 2 * len(single)
    if model.shortcut == "A":
        assert conditionals(None) == 0
        assert conditionals(np.ones((model.num_blocks, B), "float32")) == 0


# --- The gradient by a gate -----------------------------------------------------------


def central_differences(f, gates, h=1e-5):
    gradient = np.zeros_like(gates)
    for place in np.ndindex(gates.shape):
        plus, minus = gates.copy(), gates.copy()
        plus[place] += h
        minus[place] -= h
        gradient[place] = (f(plus) - f(minus)) / (2 * h)
    return gradient


BUILDS = pytest.mark.parametrize(
    "build",
    [
        pytest.param(small, id="resnet"),
        pytest.param(plain, id="plain", marks=pytest.mark.slow),
    ],
)


@BUILDS
def test_gradient_by_the_gates(x64, images, random_variables, build):
    # tanh: with ReLU the loss has a kink where a gate is 0.
    model = build(activation=jnp.tanh)
    variables = random_variables(model, IMAGE, "float64")
    step = make_step(model, images.astype("float64"))

    def loss(gates):
        return step(variables, gates)[0][0]

    gates = np.array([0.7, 1.0, 1.0, 1.3])
    (_, by_gates) = step(variables, gates)[1]
    numeric = central_differences(loss, gates)
    np.testing.assert_allclose(by_gates, numeric, rtol=1e-6, atol=1e-9)
    skippable = [b.skippable for b in model.blocks]
    np.testing.assert_array_equal(by_gates != 0, skippable)

    # A closed gate of a mini-batch: its branch was not computed, so 0.
    gates = np.array([0.7, 0.0, 1.0, 0.0])
    (_, by_gates) = step(variables, gates)[1]
    np.testing.assert_array_equal(np.asarray(by_gates)[[1, 3]], 0)
    numeric = central_differences(loss, gates)
    np.testing.assert_allclose(
        np.asarray(by_gates)[[0, 2]], numeric[[0, 2]], rtol=1e-6, atol=1e-9
    )
    # Gates of examples are right everywhere, closed ones included.
    gates = np.array([[0.7, 0, 1], [0, 0, 0], [1, 1, 0.2], [0, 1, -1]])
    (_, by_gates) = step(variables, gates)[1]
    numeric = central_differences(loss, gates)
    np.testing.assert_allclose(by_gates, numeric, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(np.all(by_gates, axis=1), skippable)


@BUILDS
def test_gates_of_examples_equal_one_example_at_a_time(
    x64, images, random_variables, build
):
    model = build()
    variables = random_variables(model, IMAGE, "float64")
    gates = np.array([[1, 0, 0.5], [0, 0, 1], [1, 1, 0], [1, 0, 0]], "float64")
    images = images.astype("float64")
    run = jax.jit(partial(model.apply, train=False))
    together = run(variables, images, gates=gates)
    for i in range(B):
        alone = run(variables, images[i : i + 1], gates=gates[:, i])
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-12, atol=1e-12)


@BUILDS
@pytest.mark.parametrize(
    "dtype, rtol",
    [pytest.param("float32", 1e-6, marks=pytest.mark.slow), ("float64", 1e-12)],
)
def test_gates_of_ones_equal_no_gates(
    request, images, random_variables, build, dtype, rtol
):
    if dtype == "float64":
        request.getfixturevalue("x64")
    model = build(stage_sizes=(2, 1))
    variables = random_variables(model, IMAGE, dtype)
    step = make_step(model, images.astype(dtype))
    results, (by_params,) = step(variables, None)
    for shape in ((3,), (3, B)):
        results_gated, (by_params_gated, _) = step(variables, np.ones(shape, dtype))
        assert_close(results_gated, results, rtol)
        assert_close(by_params_gated, by_params, rtol)


# --- Captured features ----------------------------------------------------------------


@pytest.mark.parametrize("shortcut", ["A", pytest.param("B", marks=pytest.mark.slow)])
def test_capturing_changes_nothing(x64, images, random_variables, shortcut):
    model = small(shortcut=shortcut)
    variables = random_variables(model, IMAGE, "float64")
    images = images.astype("float64")

    def run(variables, gates, **options):
        def loss(params, gates):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                gates=gates,
                **options,
            )
            return (logits**2).sum(), (logits, updates)

        grads, (logits, updates) = jax.grad(loss, (0, 1), has_aux=True)(
            variables["params"], gates
        )
        return grads, logits, updates

    captured = jax.jit(
        partial(
            run, mutable=["batch_stats", "intermediates"], capture_intermediates=True
        )
    )
    usual = jax.jit(partial(run, mutable=["batch_stats"]))
    for gates in ([1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]):
        gates = np.array(gates, "float64")
        grads, logits, updates = usual(variables, gates)
        grads_c, logits_c, updates_c = captured(variables, gates)
        features = updates_c.pop("intermediates")
        assert_close((grads_c, logits_c), (grads, logits), 1e-12)
        assert_close(updates_c, updates, 1e-12)
        for info in model.blocks:
            if gates[info.index] == 0:  # to the last bit
                assert grads_c[1][info.index] == 0
                mine = block_variables({"params": grads_c[0]}, info.index)["params"]
                mine.pop("shortcut", None)
                assert all_zero(mine)
                before, after = (
                    block_variables(tree, info.index)["batch_stats"]
                    for tree in (variables, updates_c)
                )
                assert equal(before["bn1"], after["bn1"])
                assert equal(before["bn2"], after["bn2"])

    stacked = features["stage1"]["blocks"]
    assert stacked["residual"][0].shape == (2, B, SIZE, SIZE, 4)
    assert stacked["conv1"]["__call__"][0].shape == (2, B, SIZE, SIZE, 4)
    assert features["stage2"]["first"]["residual"][0].shape == (B, 3, 3, 8)


def test_named_features_without_capturing_all(images, random_variables):
    model = small()
    variables = random_variables(model, IMAGE)
    gates = np.array([1, 0, 0, 1], "float32")

    @jax.jit
    def sown():
        return model.apply(
            variables, images, train=False, gates=gates, mutable=["intermediates"]
        )[1]["intermediates"]

    features = jax.eval_shape(sown)
    assert list(features["stage2"]["first"]) == ["residual"]
    assert features["stage1"]["blocks"]["residual"][0].shape == (2, B, SIZE, SIZE, 4)


# --- Paths ----------------------------------------------------------------------------


THREE_BLOCKS = [
    ResNet((2, 1), num_classes=3, features=(4, 8), shortcut="A"),
    ResNet((2, 1), num_classes=3, features=(4, 8), shortcut="B"),
    DenseNet((2, 1), num_classes=3, growth_rate=3, stem_features=4, remat="all"),
    HighwayMLP(depth=4, width=6, num_classes=3),
]


@pytest.mark.parametrize("model", THREE_BLOCKS)
def test_paths_add_up_to_the_gradient(x64, images, random_variables, model):
    variables = random_variables(model, IMAGE, "float64")
    images = images.astype("float64")

    @jax.jit
    def by_input(images, paths):
        def loss(images):
            logits = model.apply(variables, images, train=False, paths=paths)
            return (logits[:, 0] * jnp.array([1.0, -2.0, 3.0])).sum(), logits

        grad, logits = jax.grad(loss, has_aux=True)(images)
        return grad, logits

    whole, logits = by_input(images, None)
    total = 0
    for path in itertools.product((0.0, 1.0), repeat=3):
        grad, same_logits = by_input(images, np.array(path))
        np.testing.assert_allclose(same_logits, logits, rtol=1e-12, atol=1e-12)
        assert np.any(grad)
        assert not np.allclose(grad, whole)
        total += grad
    np.testing.assert_allclose(total, whole, rtol=0, atol=1e-12)


def test_paths_keep_the_values_exactly(random_variables):
    norm = partial(BatchNorm, use_running_average=True)
    block = BasicBlock(4, 1, "A", Conv, norm, nn.relu)
    x = np.random.default_rng(0).normal(size=(B, 6, 6, 4)).astype("float32")
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.3, "float32"), shapes)

    @jax.jit
    def outputs(x, on_path, gate):
        return [
            block.apply(variables, x, gate, marked, train=False)
            for marked in (None, on_path)
        ]

    for on_path, gate in itertools.product((0.0, 1.0), (0.0, 0.5, 1.0)):
        without, with_paths = outputs(x, jnp.float32(on_path), jnp.float32(gate))
        np.testing.assert_array_equal(without, with_paths)


def test_paths_through_closed_blocks(images, random_variables):
    # On the path a closed branch carries no gradient; off it, the shortcut carries all.
    model = small()
    variables = random_variables(model, IMAGE)

    @jax.jit
    def by_input(images, gates, paths):
        return jax.grad(
            lambda x: model.apply(
                variables, x, train=False, gates=gates, paths=paths
            ).sum()
        )(images)

    gates = np.array([1, 0, 1, 1], "float32")
    assert all_zero(by_input(images, gates, np.array([1, 1, 0, 0], "float32")))
    assert not all_zero(by_input(images, gates, np.array([1, 0, 0, 0], "float32")))


# --- A block of one's own, and drawn gates --------------------------------------------


class ScaledBlock(Block):
    """A user's block: one convolution with a learned scale, and dropout."""

    def shortcut(self, x, *, train):
        if x.shape[-1] == self.features:
            return x
        return self.conv(self.features, 1, self.stride, name="project")(x)

    def residual(self, x, *, train):
        y = self.conv(self.features, 3, self.stride, name="conv")(x)
        y = nn.Dropout(0.5, deterministic=not train, name="drop")(y)
        strength = self.param("strength", nn.initializers.ones, (self.features,))
        return y * strength[None, None, None]


def test_blocks_of_the_old_form_are_told_what_to_write():
    with pytest.raises(InputError, match=r"^Old defines __call__, .* residual\("):

        class Old(BasicBlock):
            @nn.compact
            def __call__(self, x, gate=None, on_path=None, *, train):
                return x

    for other in (nn.Dense, lambda **fields: BasicBlock(**fields), None):
        with pytest.raises(InputError, match=r"^block must be a sub.* residual\("):
            small(block=other)
    for name in ("identity", "basic_branch"):
        with pytest.raises(ImportError, match=f"^{name} is now a method of the blocks"):
            getattr(resnet, name)
    assert not hasattr(resnet, "nothing")


@pytest.mark.usefixtures("optimized")
def test_a_users_block_is_gated_scanned_and_skipped(images, random_variables):
    model = small(block=ScaledBlock)
    variables = random_variables(model, IMAGE)
    assert variables["params"]["stage1"]["blocks"]["strength"].shape == (2, 4)
    assert all(b.skippable for b in model.blocks)

    @jax.jit
    def grads(params, gates, key):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                gates=gates,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            return (logits**2).sum()

        return jax.grad(loss)(params)

    gates = np.array([0, 1, 0, 1], "float32")
    arguments = variables["params"], gates, jax.random.key(0)
    by_params = grads(*arguments)
    for info in model.blocks:
        mine = block_variables({"params": by_params}, info.index)["params"]
        project = mine.pop("project", None)
        assert project is None or not all_zero(project)
        assert all_zero(mine) == (gates[info.index] == 0)
    text = grads.lower(*arguments).compile().as_text()
    assert len(re.findall(r" conditional\(", text)) == 9
    assert not equal(by_params, grads(*arguments[:2], jax.random.key(1)))


def test_gates_drawn_from_a_key(images, random_variables):
    settings = StochasticDepth(last_survival=0.2)
    model = small(stochastic_depth=settings)
    variables = random_variables(model, IMAGE)

    @jax.jit
    def forward(key):
        logits, updates = model.apply(
            variables, images, train=True, rngs={"gates": key}, mutable=["batch_stats"]
        )
        return logits, updates["batch_stats"]

    @jax.jit
    def given(gates):
        return model.apply(
            variables, images, train=True, gates=gates, mutable=["batch_stats"]
        )[0]

    patterns = [
        np.array(gates, "float32") for gates in itertools.product((0, 1), repeat=4)
    ]
    logits = [np.asarray(given(gates)) for gates in patterns]
    drawn = []
    for seed in range(200):
        ours, stats = forward(jax.random.key(seed))
        errors = [np.abs(ours - theirs).max() for theirs in logits]
        assert sorted(errors)[0] < 1e-5 < sorted(errors)[1]  # one pattern, no other
        drawn.append(patterns[int(np.argmin(errors))])
        for info in model.blocks:
            after = block_variables({"batch_stats": stats}, info.index)["batch_stats"]
            before = block_variables(variables, info.index)["batch_stats"]
            assert equal(before, after) == (drawn[-1][info.index] == 0)
    survival = np.array([0.8, 0.6, 0.4, 0.2])
    error = (survival * (1 - survival) / len(drawn)) ** 0.5
    assert np.all(np.abs(np.mean(drawn, axis=0) - survival) < 4 * error)

    again, _ = forward(jax.random.key(0))
    np.testing.assert_array_equal(again, forward(jax.random.key(0))[0])
    # Given gates are used as they are: nothing is drawn and no factor is added.
    constant, _ = model.clone(stochastic_depth=None).apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(given(np.ones(4, "float32")), constant, atol=1e-5)
    assert not np.allclose(given(np.ones(4, "float32")), given(0.5 * patterns[-1]))
