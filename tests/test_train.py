# SPDX-License-Identifier: Apache-2.0
"""The training step: one device against eight, gates from the key, what a step does."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze

from rn_jax import (
    InputError,
    StochasticDepth,
    data,
    metrics,
    optim,
    parallel,
    survival_probs,
    train,
)
from rn_jax.models.highway import HighwayMLP
from rn_jax.models.resnet import BasicBlock, ResNet
from rn_jax.stochastic_depth import sample_gates

SHAPE = (8, 8, 1)
DEPTH = StochasticDepth(last_survival=0.3)


def make_batch(size=16, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, *SHAPE), dtype=np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "mask": np.ones(size, bool),
    }


def preprocess(images):
    dtype = "float64" if jax.config.jax_enable_x64 else "float32"
    return data.normalize(images, np.float32([100]), np.float32([70]), dtype)


def augment(key, images, first_index):
    return data.augment(
        key, preprocess(images), pad=1, flip=True, first_index=first_index
    )


def setup(
    num_devices,
    stochastic_depth=None,
    batch_norm_axis=parallel.AXIS,
    gates_from_step=0,
    mode="pmap",
    from_examples=False,
):
    devices = jax.devices()[:num_devices]
    axis_name = parallel.axis_name(devices)
    model = ResNet(
        (2, 2),
        features=(4, 8),
        stochastic_depth=stochastic_depth,
        axis_name=axis_name and batch_norm_axis,
    )
    tx = optim.sgd(
        optim.piecewise_schedule(0.1),
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        decay="all",
    )
    state = train.create_state(jax.random.key(0), model=model, tx=tx, image_shape=SHAPE)
    step = train.make_train_step(
        model=model,
        tx=tx,
        preprocess=augment,
        gates_from_step=gates_from_step,
        axis_name=axis_name,
    )
    return (
        model,
        parallel.replicate(state, devices, mode=mode),
        parallel.compile_train_step(
            train.from_examples(step, SHAPE) if from_examples else step,
            devices,
            mode=mode,
            from_examples=from_examples,
        ),
        devices,
    )


def run(num_devices, stochastic_depth, steps=5):
    _, state, step, _ = setup(num_devices, stochastic_depth)
    seen = []
    for i in range(steps):
        state, sums = step(state, make_batch(seed=i), jax.random.key(1))
        seen.append(jax.device_get(sums))
    return jax.device_get(state), seen


@pytest.mark.parametrize(
    ("num_devices", "mode"),
    [pytest.param(1, "pmap", marks=pytest.mark.slow), (2, "shard_map")],
)
def test_batches_gathered_on_the_devices_give_the_same_steps(num_devices, mode):
    """Four steps of epochs of three; both programs stand for the same arithmetic."""
    examples = make_batch(50)
    order = np.random.default_rng(0).permutation(50)[:48].reshape(3, 16)
    _, a, by_rows, devices = setup(num_devices, DEPTH, mode=mode)
    _, b, by_order, _ = setup(num_devices, DEPTH, mode=mode, from_examples=True)
    images = examples["image"].reshape(50, -1)
    there = {"images": images, "labels": examples["label"]}
    batch = parallel.replicate(there, devices, mode=mode)
    batch["order"] = np.int32(order.T)
    for i in range(4):
        rows = {name: array[order[i % 3]] for name, array in examples.items()}
        a, seen_a = by_rows(a, rows, jax.random.key(1))
        b, seen_b = by_order(b, batch, jax.random.key(1))
        for name in ("loss", "correct", "count", "grad_norm"):
            np.testing.assert_allclose(seen_a[name], seen_b[name], rtol=1e-5)
        np.testing.assert_array_equal(seen_a["open"], seen_b["open"])


@pytest.mark.slow  # `make test` has it in double precision
@pytest.mark.parametrize("depth", [None, DEPTH], ids=["constant", "stochastic"])
def test_eight_devices_compute_what_one_computes(depth):
    """Loss, gates, parameters and statistics, with BatchNorm over the whole batch."""
    one, seen_one = run(1, depth)
    eight, seen_eight = run(8, depth)
    for a, b in zip(seen_one, seen_eight, strict=True):
        np.testing.assert_array_equal(a["open"], b["open"])
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-4)
    for part in ("params", "batch_stats", "sums", "open_counts", "opt_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
            getattr(one, part),
            getattr(eight, part),
        )


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_the_compiled_step_holds_a_conditional_for_a_block_outside_a_loop(num_devices):
    """Forward and backward, for stage 2's first block; loops visit open ones alone."""
    counts = []
    for depth in (None, DEPTH):
        _, state, step, _ = setup(num_devices, depth)
        program = step.lower(state, make_batch(), jax.random.key(1)).compile()
        counts.append(len(re.findall(r" conditional\(", program.as_text())))
    assert counts[0] == 0
    assert counts[1] >= 2


@pytest.mark.slow
def test_eight_devices_in_double_precision(x64):
    """To 1e-12, so that nothing but rounding is between them, by either mode."""
    states = []
    for num_devices, mode in ((1, "pmap"), (8, "pmap"), (8, "shard_map")):
        _, state, step, devices = setup(num_devices, DEPTH, mode=mode)
        double = {  # metrics stay in float32
            part: jax.tree.map(
                lambda a: a.astype("float64") if a.dtype == np.float32 else a,
                getattr(state, part),
            )
            for part in ("params", "batch_stats", "opt_state")
        }
        state = state.replace(**double)
        state = parallel.replicate(state, devices, mode=mode)
        for i in range(2):
            state, _ = step(state, make_batch(seed=i), jax.random.key(1))
        states.append(jax.device_get(state))
    for part in ("params", "batch_stats"):
        by_pmap = getattr(states[1], part)
        jax.tree.map(
            np.testing.assert_array_equal, by_pmap, getattr(states[2], part)
        )  # the same program
        for path, a in jax.tree_util.tree_leaves_with_path(getattr(states[0], part)):
            b = by_pmap
            for key in path:
                b = b[key.key]
            error = np.abs(a - b).max() / np.abs(a).max()
            assert error < 1e-12, (jax.tree_util.keystr(path), error)


@pytest.mark.slow
def test_statistics_of_each_device_alone_are_another_algorithm():
    """So that the test above would notice if statistics were not synchronised."""
    losses = []
    for axis in (parallel.AXIS, None):
        _, state, step, _ = setup(8, batch_norm_axis=axis)
        losses.append(float(step(state, make_batch(), jax.random.key(1))[1]["loss"]))
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]


def test_eight_devices_evaluate_what_one_evaluates_with_padding_masked():
    model, state, _, _ = setup(1)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    batch = make_batch(24)
    examples = data.Examples(batch["image"][:19], batch["label"][:19])
    totals = []
    for count in (1, 8):
        devices = jax.devices()[:count]
        step = parallel.compile_eval_step(
            train.make_eval_step(
                model=model,
                preprocess=preprocess,
                axis_name=parallel.axis_name(devices),
            ),
            devices,
        )
        here = parallel.replicate(variables, devices)
        sums = [
            jax.device_get(step(here, b))
            for b in data.eval_batches(examples, batch_size=8)
        ]
        totals.append({k: sum(s[k] for s in sums) for k in sums[0]})
    assert totals[0]["count"] == totals[1]["count"] == 19
    assert totals[0]["correct"] == totals[1]["correct"]
    np.testing.assert_allclose(totals[0]["loss"], totals[1]["loss"], rtol=1e-5)
    apply = jax.jit(partial(model.apply, train=False))
    logits = apply(variables, preprocess(examples.images))
    whole = metrics.classification_sums(logits, examples.labels, np.ones(19, bool))
    np.testing.assert_allclose(totals[0]["loss"], whole["loss"], rtol=1e-5)


def test_a_step_is_gradient_descent_on_the_mean_loss():
    """Written out once more, without the factory."""
    model, state, step, _ = setup(1)
    state, batch, key = jax.device_get(state), make_batch(), jax.random.key(1)
    augment_key = jax.random.split(jax.random.fold_in(key, 0), 3)[0]
    images = augment(augment_key, batch["image"], 0)

    def loss(params):
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), updates["batch_stats"]

    slope = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, stats), grads = slope(state.params)
    after, sums = step(jax.tree.map(jnp.asarray, state), batch, key)
    np.testing.assert_allclose(sums["loss"] / 16, value, rtol=1e-5)
    expected = jax.tree.map(  # Nesterov's first step: (1 + momentum) times the gradient
        lambda p, g: p - 0.1 * 1.9 * (g + 1e-4 * p), state.params, grads
    )
    for ours, theirs in [(after.params, expected), (after.batch_stats, stats)]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            ours,
            theirs,
        )


def test_gates_follow_the_key_and_the_step_and_are_counted():
    key = jax.random.key(1)
    state, seen = run(1, DEPTH, steps=6)
    for i, sums in enumerate(seen):
        gates_key = jax.random.split(jax.random.fold_in(key, i), 3)[1]
        np.testing.assert_array_equal(sums["open"], sample_gates(gates_key, DEPTH, 4))
    counts = sum(sums["open"] for sums in seen)
    np.testing.assert_array_equal(state.open_counts, counts)
    assert 0 < counts.sum() < 24  # some were open and some closed
    assert state.step == 6


def test_sums_of_the_epoch_add_up_the_steps():
    state, seen = run(1, None)
    for name in ("loss", "correct", "count"):
        np.testing.assert_allclose(
            state.sums[name], sum(s[name] for s in seen), rtol=1e-6
        )


@pytest.mark.slow  # test_gating.py has it without the step
def test_closed_block_keeps_statistics_and_gets_no_gradient_in_the_step():
    """With every weight's decay off, a closed block's parameters stay bit for bit."""
    model, state, _, _ = setup(1, DEPTH)
    tx = optim.sgd(
        optim.piecewise_schedule(0.1),
        momentum=0.9,
        nesterov=True,
        weight_decay=0.0,
        decay="all",
    )
    state = state.replace(opt_state=tx.init(state.params))
    step = train.make_train_step(model=model, tx=tx, preprocess=augment)
    step = jax.jit(step)  # keeps the state, unlike the one that is compiled to train
    for seed in range(20):
        after, sums = step(state, make_batch(), jax.random.key(seed))
        if sums["open"][2] == 0:  # the transition block, which is not in the scan
            break
    assert sums["open"][2] == 0
    for name in ("params", "batch_stats"):
        before = getattr(state, name)["stage2"]["first"]
        jax.tree.map(
            np.testing.assert_array_equal,
            getattr(after, name)["stage2"]["first"],
            before,
        )
    moved = after.params["stem_conv"]["kernel"] != state.params["stem_conv"]["kernel"]
    assert moved.any()


def test_stochastic_depth_begins_at_its_step():
    """Exactly k open blocks from then on (Veit et al. 2016), all of them before."""
    short = StochasticDepth(num_open=1, schedule="uniform", scaling="training")
    _, state, step, _ = setup(1, short, gates_from_step=2)
    opened, losses = [], []
    for i in range(4):
        state, seen = step(state, make_batch(seed=i), jax.random.key(1))
        opened.append(seen["open"].tolist())
        losses.append(seen["loss"])
    assert opened[:2] == [[1.0] * 4] * 2
    assert [sum(row) for row in opened[2:]] == [1, 1]
    # In the first steps nothing but constant depth: no factor 1 / p_l either.
    _, state, step, _ = setup(1)
    for i in range(2):
        state, seen = step(state, make_batch(seed=i), jax.random.key(1))
        np.testing.assert_allclose(seen["loss"], losses[i], rtol=1e-5)


@pytest.mark.parametrize(
    "grads, expected",
    [
        ({"stem_conv": {"kernel": [9.0]}, "head": {"kernel": [9.0]}}, 0),
        ({"stage1": {"first": {"conv1": {"kernel": [1.0, -3.0]}}}}, 2),
        (
            {
                "stage1": {
                    "blocks": {
                        "bn1": {"scale": [[7.0], [8.0]]},
                        "conv1": {"kernel": [[-1.0, 2.0], [5.0, 5.0]]},
                        "conv2": {"kernel": [[6.0, 6.0], [6.0, 6.0]]},
                    }
                },
                "stage2": {"first": {"conv1": {"kernel": [9.0]}}},
            },
            1.5,
        ),
        (
            {
                "stage1": {
                    "layer01": {"conv": {"bias": [8.0], "kernel": [-4.0]}},
                    "layer02": {"conv": {"kernel": [9.0]}},
                }
            },
            4,
        ),
    ],
    ids=["no blocks", "first block apart", "scanned blocks", "layers"],
)
def test_gradient_of_the_first_kernel(grads, expected):
    is_leaf = lambda value: isinstance(value, list)  # noqa: E731
    grads = jax.tree.map(np.float32, grads, is_leaf=is_leaf)
    assert train.first_gradient(grads) == expected


def test_first_gradient_is_logged_as_a_mean_over_examples():
    _, state, step, _ = setup(1)
    seen = []
    for i in range(2):
        state, sums = step(state, make_batch(seed=i), jax.random.key(1))
        seen.append(float(sums["gradient"]) / 16)
    assert 0 < min(seen) and max(seen) < 1
    assert float(state.sums["gradient"]) == pytest.approx(16 * sum(seen))
    # It is that of the mean loss, so no more than its norm over all parameters.
    assert seen[-1] < float(sums["grad_norm"])


# --- The functions of a step, each by itself ------------------------------------------


class Heads(nn.Module):
    """A linear layer that sows an auxiliary head of twice its logits and two losses."""

    @nn.compact
    def __call__(self, images, *, train, gates):
        assert train
        kernel = self.param("kernel", nn.initializers.zeros, (3, 4))
        logits = gates * (images.reshape(len(images), -1) @ kernel)
        self.sow("aux_logits", "logits", 2 * logits)
        self.sow("losses", "size", jnp.float32([0.5, 0.25]))
        return logits


def test_gates_of_a_step():
    """No gates for constant depth, gates of 1 until `from_step`, then drawn ones."""
    key = jax.random.key(0)

    def draw(settings, step):
        model = ResNet((2, 2), features=(4, 8), stochastic_depth=settings)
        return train.draw_gates(*(key, model, 8, 0), from_step=3, step=jnp.int32(step))

    gates, shares = draw(None, 3)
    assert gates is None and shares.tolist() == [1, 1, 1, 1]
    scaled = StochasticDepth(0.5, granularity="example", scaling="training")
    for step in (0, 2):
        gates, shares = draw(scaled, step)
        assert np.all(gates == 1) and shares.tolist() == [1, 1, 1, 1]
    gates, shares = draw(scaled, 3)
    np.testing.assert_array_equal(gates, sample_gates(key, scaled, 4, 8))
    np.testing.assert_array_equal(shares, (gates != 0).mean(axis=1))
    assert 0 < shares.min() < 1


def test_objective_by_numpy():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 1, 1, 3)).astype("float32")
    labels, mask = np.int32([0, 3, 1, 2, 2]), np.array([1, 1, 1, 1, 0], bool)
    kernel = rng.normal(size=(3, 4)).astype("float32")
    loss, (stats, sums) = train.objective(
        *(Heads(), 0.3, 8.0, {"kernel": kernel}, {}, (images, labels, mask)),
        *(jnp.float32(0.5), jax.random.key(0)),
    )

    def cross_entropy(logits):
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return -np.log(p[np.arange(5), labels])[mask].sum()

    logits = 0.5 * images.reshape(5, 3) @ kernel
    total = cross_entropy(logits) + 0.3 * cross_entropy(2 * logits) + 4 * 0.75
    np.testing.assert_allclose(sums["loss"], total, rtol=1e-5)
    np.testing.assert_allclose(loss, 8 * total, rtol=1e-5)
    assert int(sums["correct"]) == (logits.argmax(axis=1) == labels)[mask].sum()
    assert sums["count"] == 4 and stats == {}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("by_example", [False, True])
def test_gradient_of_a_batch_in_parts_by_numpy(parts, by_example):
    """Of a linear regression, with gates, keys and statistics that depend on order."""
    rng = np.random.default_rng(0)
    x, y, w = (rng.normal(size=s).astype("float32") for s in ((6, 3), 6, 3))
    gates = rng.uniform(size=(2, 6) if by_example else 2).astype("float32")

    def squares(params, batch_stats, examples, gates, key):
        x, y = examples
        error = gates[1] * (x @ params["w"]) - y + jax.random.uniform(key)
        loss = (error**2).sum()
        sums = {"loss": loss, "correct": jnp.float32(1), "count": jnp.float32(len(y))}
        return loss, (2 * batch_stats + x.sum(), sums)

    key, stats, grad, total = jax.random.key(1), 1.0, 0, 0
    keys = [key] if parts == 1 else jax.random.split(key, parts)
    for i, part in enumerate(np.split(np.arange(6), parts)):
        gate = gates[1, part] if by_example else gates[1]
        error = gate * (x[part] @ w) - y[part] + float(jax.random.uniform(keys[i]))
        grad = grad + 2 * (gate * error) @ x[part]
        total, stats = total + (error**2).sum(), 2 * stats + x[part].sum()
    found, found_stats, sums = train.accumulate_gradients(
        *(squares, {"w": w}, jnp.float32(1), (x, y), jnp.asarray(gates), key, parts)
    )
    np.testing.assert_allclose(found["w"], grad, rtol=1e-4)
    np.testing.assert_allclose(found_stats, stats, rtol=1e-4)
    np.testing.assert_allclose(sums["loss"], total, rtol=1e-4)
    assert sums["correct"] == parts and sums["count"] == 6


def test_devices_are_combined_by_sums_and_means():
    rng = np.random.default_rng(0)
    grads, loss, mean, opened = rng.normal(size=(4, 4, 3)).astype("float32")
    arguments = {"w": grads}, {"loss": loss}, {"mean": mean}, opened
    by_device = jax.pmap(
        partial(train.combine_devices, axis_name="devices"),
        axis_name="devices",
        devices=jax.devices()[:4],
    )
    whole = by_device(*arguments)
    for found, parts, combine in zip(
        jax.tree.leaves(whole),
        (grads, loss, mean, opened),
        (np.sum, np.sum, np.mean, np.mean),
        strict=True,
    ):
        expected = np.tile(combine(parts, axis=0), (4, 1))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    alone = train.combine_devices(*arguments, axis_name=None)
    jax.tree.map(np.testing.assert_array_equal, alone, arguments)


def test_gradients_are_applied_at_the_scaled_rate():
    """The factor scales the update, or is given to an optimiser that takes it."""
    w, g = np.float32([1, -2]), np.float32([0.5, 4])
    tx = optax.sgd(0.1, momentum=0.9)
    state = tx.init({"w": w})
    params, velocity = {"w": w}, np.zeros(2)
    for factor in (1.0, 0.25):
        velocity = 0.9 * velocity + g
        expected = params["w"] - factor * 0.1 * velocity
        params, state = train.apply_gradients(
            tx, {"w": g}, state, params, jnp.float32(factor)
        )
        np.testing.assert_allclose(params["w"], expected, rtol=1e-6)

    def update(grads, count, params, *, rate_factor):
        return jax.tree.map(lambda g: -(rate_factor**2) * g, grads), count + 1

    inside = optim.RateScaledInside(lambda params: 0, update)
    params, count = train.apply_gradients(
        inside, {"w": g}, 0, {"w": w}, jnp.float32(0.5)
    )
    np.testing.assert_allclose(params["w"], w - 0.25 * g)
    assert count == 1


@pytest.mark.parametrize("finite", [True, False])
def test_a_step_is_kept_if_its_gradient_is_finite(finite):
    """Counts advance either way."""

    def state(value, count, **scale):
        return train.TrainState(
            step=jnp.int32(count),
            params={"w": jnp.float32(value)},
            batch_stats={"mean": jnp.float32(value)},
            opt_state={"v": jnp.float32(value), "count": jnp.int32(count)},
            sums={},
            open_counts=jnp.float32([count]),
            feedback={},
            loss_scale=jax.tree.map(jnp.asarray, scale),
        )

    old = state(1.0, 5, factor=np.float32(8), good_steps=np.int32(3))
    scaling = optim.LossScaling(growth_interval=4)
    kept = train.keep_if_finite(state(2.0, 6), old, jnp.bool_(finite), scaling)
    scale = {"factor": 16, "good_steps": 0} if finite else {"factor": 4}
    expected = state(2.0 if finite else 1.0, 6, **{"good_steps": 0, **scale})
    expected = expected.replace(step=jnp.int32(6))
    jax.tree.map(np.testing.assert_array_equal, kept, expected)


# --- Parts of a batch, feedback, precision --------------------------------------------


def one_step(model, batch, **settings):
    """The state after one step of plain gradient descent, and its metrics."""
    settings = {"tx": optax.sgd(1.0), **settings}
    made = {"model": model, "tx": settings.pop("tx")}
    of_state = {n: settings[n] for n in ("feedback", "loss_scaling") if n in settings}
    state = train.create_state(jax.random.key(0), **made, image_shape=SHAPE, **of_state)
    step = train.make_train_step(**made, preprocess=augment, **settings)
    return state, *jax.jit(step)(state, batch, jax.random.key(1))


@pytest.mark.parametrize(
    "granularity, shake",
    [
        pytest.param("batch", None, marks=pytest.mark.slow),
        pytest.param("example", None, marks=pytest.mark.slow),
        pytest.param("batch", "batch", marks=pytest.mark.slow),
        ("batch", "example"),
    ],
)
def test_parts_of_a_batch_add_up_to_its_gradient(granularity, shake):
    """Without BatchNorm, and with gates that go with their examples."""
    depth = StochasticDepth(last_survival=0.3, granularity=granularity, shake=shake)
    model = HighwayMLP(depth=4, width=8, stochastic_depth=depth)
    start, whole, sums = one_step(model, make_batch())
    _, parts, sums_of_parts = one_step(model, make_batch(), micro_batches=4)
    assert np.any(whole.params["head"]["kernel"] != start.params["head"]["kernel"])
    for a, b in ((whole.params, parts.params), (sums, sums_of_parts)):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b
        )


def test_parts_of_a_batch_have_statistics_of_their_own():
    model = ResNet((1,), features=(4,))
    start, after, _ = one_step(model, make_batch(), micro_batches=2)
    augment_key = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 3)[0]
    images = augment(augment_key, make_batch()["image"], 0)
    stats = start.batch_stats
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    for part in (images[:8], images[8:]):
        variables = {"params": start.params, "batch_stats": stats}
        stats = apply(variables, part)[1]["batch_stats"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        after.batch_stats,
        stats,
    )


def test_the_rate_follows_the_training_error():
    model = HighwayMLP(depth=2, width=4)
    feedback = optim.RateController(warmup_factor=0.25, warmup_until_error=80.0)
    start, whole, _ = one_step(model, make_batch())
    _, warm, sums = one_step(model, make_batch(), feedback=feedback)
    assert sums["rate_factor"] == 0.25
    error = 100 * (1 - float(sums["correct"]) / 16)
    expected = 0.95 * 100 + 0.05 * error
    assert float(warm.feedback["warmup_error"]) == pytest.approx(expected)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(
            b - a, 0.25 * (c - a), rtol=1e-3, atol=1e-7
        ),
        start.params,
        warm.params,
        whole.params,
    )


@pytest.mark.parametrize(
    ("form", "chained"),
    [
        ("torch", False),
        pytest.param("caffe", False, marks=pytest.mark.slow),
        ("caffe", True),
    ],
)
def test_the_factor_of_the_rate_is_where_the_rate_is(form, chained):
    """In Caffe's form in the velocity, in Torch's outside of it."""
    tx = optim.sgd(
        optim.piecewise_schedule(1.0),
        momentum=0.9,
        nesterov=False,
        weight_decay=0.0,
        decay="all",
        momentum_form=form,
    )
    if chained:
        tx = optim.RateScaledInside(*optax.chain(optax.clip(100.0), tx))
    model = HighwayMLP(depth=2, width=4)
    feedback = optim.RateController(warmup_factor=0.25, warmup_until_error=80.0)
    start, whole, _ = one_step(model, make_batch(), tx=tx)
    _, warm, _ = one_step(model, make_batch(), tx=tx, feedback=feedback)

    def moved(after):
        return jax.tree.map(lambda a, b: a - b, after.params, start.params)

    def velocity(state):
        return [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]

    assert any(map(np.any, velocity(whole)))
    for found, expected, factor in (
        (moved(warm), moved(whole), 0.25),
        (velocity(warm), velocity(whole), 0.25 if form == "caffe" else 1),
    ):
        jax.tree.map(
            lambda a, b, f=factor: np.testing.assert_allclose(
                a, f * b, rtol=1e-3, atol=1e-7
            ),
            found,
            expected,
        )


def test_what_stays_in_float32_in_a_step_of_bfloat16():
    """Parameters, their gradient's sum, BatchNorm's statistics and the loss."""
    start, after, sums = one_step(ResNet((1,), features=(4,)), make_batch())
    half = ResNet((1,), features=(4,), dtype=jnp.bfloat16)
    _, narrow, narrow_sums = one_step(half, make_batch())
    for a, b in ((after, narrow), (sums, narrow_sums)):
        assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)
    assert narrow_sums["loss"] != sums["loss"]
    np.testing.assert_allclose(narrow_sums["loss"], sums["loss"], rtol=0.02)
    logits = jax.eval_shape(
        lambda s: half.apply(
            {"params": s.params, "batch_stats": s.batch_stats},
            jnp.zeros((1, *SHAPE)),
            train=False,
        ),
        start,
    )
    assert logits.dtype == jnp.bfloat16


# --- Exact statistics -----------------------------------------------------------------


@pytest.mark.parametrize("num_devices", [1, 8])
def test_exact_statistics_are_those_of_all_examples(num_devices):
    """Of the first BatchNorm, whose input depends on no other, by NumPy."""
    model, state, _, devices = setup(num_devices, batch_norm_axis=None)
    step = parallel.compile_statistics_step(
        train.make_statistics_step(
            model=model, preprocess=preprocess, axis_name=parallel.axis_name(devices)
        ),
        devices,
    )
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    batches = [make_batch(seed=i) for i in range(3)]
    for i, batch in enumerate(batches):
        found = step(variables, batch, np.float32(i + 1))
        variables = {**variables, "batch_stats": found}
    if num_devices == 1:
        alone = train.make_statistics_step(model=model, preprocess=preprocess)
        alone = jax.jit(alone)
        frozen = alone(freeze(jax.device_get(variables)), batches[0], np.float32(1))
        expected = alone(jax.device_get(variables), batches[0], np.float32(1))
        jax.tree.map(np.testing.assert_array_equal, frozen, expected)
    images = preprocess(np.concatenate([batch["image"] for batch in batches]))
    first = jax.lax.conv_general_dilated(
        images,
        jax.device_get(state.params["stem_conv"]["kernel"]),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    stem = found["stem_bn"]
    np.testing.assert_allclose(stem["mean"], first.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(stem["var"], first.var((0, 1, 2)), rtol=1e-4)


def test_exact_statistics_of_one_batch_are_its_own_under_the_test_rule():
    depth = StochasticDepth(last_survival=0.3)
    model = ResNet((2, 2), features=(4, 8), stochastic_depth=depth)
    _, state, _, _ = setup(1)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    step = jax.jit(train.make_statistics_step(model=model, preprocess=preprocess))
    found = step(variables, make_batch(), np.float32(1))
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    images = preprocess(make_batch()["image"])
    _, updates = apply(variables, images, gates=survival_probs(depth, 4))
    # The moving averages begin at 0 and 1, and take a tenth of what a batch has.
    expected = jax.tree.map(
        lambda old, new: old + (new - old) / 0.1,
        variables["batch_stats"],
        updates["batch_stats"],
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        found,
        expected,
    )


def test_views_of_an_image_are_judged_by_their_mean_softmax():
    model = HighwayMLP(depth=2, width=8)
    state, _, _ = one_step(model, make_batch())
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (6, 4, *SHAPE), dtype=np.uint8)
    batch = {**make_batch(6), "image": views, "mask": np.arange(6) < 5}
    variables = {"params": state.params}
    step = jax.jit(train.make_eval_step(model=model, preprocess=preprocess))
    found = step(variables, batch)
    probs = np.stack(
        [
            jax.nn.softmax(model.apply(variables, preprocess(views[:, i]), train=False))
            for i in range(4)
        ]
    ).mean(axis=0)[:5]
    labels = batch["label"][:5]
    assert found["count"] == 5
    assert int(found["correct"]) == (probs.argmax(axis=1) == labels).sum()
    loss = -np.log(probs[np.arange(5), labels]).sum()
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)


def test_loss_scaling_of_float16():
    """Another factor changes nothing but rounding, and one too large leaves out."""
    model = HighwayMLP(depth=2, width=8, dtype=jnp.float16)
    start, whole, sums = one_step(HighwayMLP(depth=2, width=8), make_batch())
    _, half, half_sums = one_step(
        model, make_batch(), loss_scaling=optim.LossScaling(initial=64.0)
    )
    moves = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)])
        for moved in (
            jax.tree.map(jnp.subtract, after.params, start.params)
            for after in (whole, half)
        )
    ]
    assert np.linalg.norm(moves[0] - moves[1]) < 0.02 * np.linalg.norm(moves[0])
    np.testing.assert_allclose(half_sums["grad_norm"], sums["grad_norm"], rtol=0.02)
    for leaf in jax.tree.leaves(half.params):
        assert leaf.dtype == jnp.float32
    assert half.loss_scale["good_steps"] == 1

    scaling = optim.LossScaling(initial=2.0**40)
    start, left_out, sums = one_step(model, make_batch(), loss_scaling=scaling)
    jax.tree.map(np.testing.assert_array_equal, left_out.params, start.params)
    assert left_out.step == 1 and sums["grad_norm"] == 0
    assert left_out.loss_scale["factor"] == 2.0**39
    assert np.isfinite(sums["loss"])


def test_subsets_are_of_a_whole_batch():
    subset = StochasticDepth(granularity="subset", schedule="uniform")
    with pytest.raises(InputError, match="cannot be combined with the granularity"):
        one_step(
            ResNet((2,), features=(4,), stochastic_depth=subset),
            make_batch(),
            micro_batches=2,
        )


# --- Blocks with collections and streams of keys of their own -------------------------


class SowingBlock(BasicBlock):
    """x + dense(x), which sows two losses and takes a key in training."""

    def residual(self, x, *, train):
        y = nn.Dense(self.features)(x)
        self.sow("losses", "size", jnp.square(y).mean())
        if train:
            kept = jax.random.bernoulli(self.make_rng("own"), 0.5, y.shape)
            y = jnp.where(kept, y, 0)
        return y

    def shortcut(self, x, *, train):
        self.sow("losses", "input", 2 * x.mean())
        self.sow("notes", "input", x.mean())
        largest = {"reduce_fn": jnp.maximum, "init_fn": lambda: -jnp.inf}
        self.sow("notes", "largest", x.max(), **largest)
        return x


def test_sown_losses_are_added_and_blocks_have_keys_of_any_name():
    model = ResNet((2,), features=(4,), block=SowingBlock)
    tx = optax.sgd(0.1)
    state = train.create_state(jax.random.key(0), model=model, tx=tx, image_shape=SHAPE)
    made = {"model": model, "tx": tx, "preprocess": lambda key, x, i: preprocess(x)}
    step = jax.jit(train.make_train_step(**made))
    batch = make_batch(4)
    batch["mask"] = np.array([True, True, True, False])
    after, sums = step(state, batch, jax.random.key(1))
    _, other = step(state, batch, jax.random.key(2))
    assert sums["loss"] != other["loss"]

    key = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 3)[2]

    @jax.jit
    def objective(params):
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            preprocess(batch["image"]),
            train=True,
            rngs={"own": train.step_rngs(key)["params"]},
            mutable=["losses", "batch_stats"],
        )
        sown = updates["losses"]["stage1"]["blocks"]
        terms = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return terms[:3].mean() + sown["size"][0].sum() + sown["input"][0].sum()

    loss, grads = jax.value_and_grad(objective)(state.params)
    np.testing.assert_allclose(sums["loss"], 3 * loss, rtol=1e-5)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - 0.1 * g, atol=1e-5),
        after.params,
        state.params,
        grads,
    )


class AveragingBlock(BasicBlock):
    """The basic block with a variable that a training step would have to carry."""

    def shortcut(self, x, *, train):
        self.variable("ema", "mean", jnp.zeros, ())
        return x


def test_variables_that_training_would_not_carry_are_refused():
    with pytest.raises(InputError, match=r"^Training carries .* variables in ema:"):
        train.create_state(
            jax.random.key(0),
            model=ResNet((1,), features=(4,), block=AveragingBlock),
            tx=optax.sgd(0.1),
            image_shape=SHAPE,
        )


@pytest.mark.slow
@pytest.mark.parametrize("granularity", [None, "subset"])
def test_64_bits_change_no_step(granularity, same_in_64_bits):
    """State, metrics and statistics keep their dtypes and values."""
    depth = None
    if granularity:
        depth = StochasticDepth(schedule="uniform", granularity=granularity)
    model = ResNet((1, 1), features=(4, 8), shortcut="A_pooled", stochastic_depth=depth)
    batch = make_batch()

    def single(images):
        return data.normalize(images, np.float32([100]), np.float32([70]))

    def augment(key, images, first_index):
        return data.augment(
            key, single(images), pad=1, flip=True, first_index=first_index
        )

    @jax.jit
    def run(batch, key):
        made = {"model": model, "tx": optax.sgd(0.1)}
        start = train.create_state(jax.random.key(0), **made, image_shape=SHAPE)
        step = train.make_train_step(**made, preprocess=augment)
        state, of_step = step(start, batch, key)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        parts = {"model": model, "preprocess": single}
        sums = train.make_eval_step(**parts)(variables, batch)
        measure = train.make_statistics_step(**parts)
        statistics = measure(variables, batch, jnp.int32(2))
        return start, state, of_step, sums, statistics

    same_in_64_bits(lambda: run(batch, jax.random.key(1)))


def test_targets_are_smoothed_and_then_mixed_with_the_images():
    """One step with 1 - 0.1 + 0.1 / 10 and 0.1 / 10, and with both arrays changed."""
    model, batch = ResNet((1,), features=(4,)), make_batch()

    def mix(key, images, targets, axis_name):
        assert axis_name is None
        return images / 2, targets[::-1]

    before, after, sums = one_step(model, batch, label_smoothing=0.1, mix=mix)
    augment_key = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 3)[0]
    images = augment(augment_key, batch["image"], 0) / 2
    targets = (0.9 * np.eye(10)[batch["label"]] + 0.01)[::-1].astype(np.float32)

    def loss(params):
        logits, _ = model.apply(
            {"params": params, "batch_stats": before.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return -(targets * jax.nn.log_softmax(logits)).sum(axis=1).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(before.params)
    np.testing.assert_allclose(sums["loss"] / 16, value, rtol=1e-5)
    jax.tree.map(
        lambda p, g, new: np.testing.assert_allclose(new, p - g, rtol=1e-4, atol=1e-6),
        before.params,
        grads,
        after.params,
    )


def test_averages_of_parameters_and_statistics():
    """Each follows the states by the decay, which is lower in the first steps."""
    model = ResNet((1,), features=(4,))
    tx = optax.sgd(0.1)
    made = {"model": model, "tx": tx, "ema_decay": 0.15}
    state = train.create_state(jax.random.key(0), **made, image_shape=SHAPE)
    step = jax.jit(
        train.make_train_step(**made, preprocess=augment, label_smoothing=0.1),
        donate_argnums=0,
    )
    expected = jax.device_get(
        {"params": state.params, "batch_stats": state.batch_stats}
    )
    for decay in (0.1, 0.15, 0.15):  # 1 / 10, and 2 / 11 and 3 / 12 are larger
        state, _ = step(state, make_batch(), jax.random.key(1))
        new = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
        expected = jax.tree.map(
            lambda e, x, d=decay: d * e + (1 - d) * x, expected, new
        )
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, state.ema, expected)
    assert state.variables is state.ema
