# SPDX-License-Identifier: Apache-2.0
"""GoogLeNet: the Inception block, and heads that are there for the loss alone."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from by_numpy import np_conv

import rn_jax
from rn_jax import create_model, metrics, train
from rn_jax.models.googlenet import AuxiliaryHead, ConvUnit, Inception
from rn_jax.models.layers import Conv
from rn_jax.models.network import Network


@pytest.mark.parametrize("large_kernel", [5, 3])
def test_inception_by_numpy(x64, random_variables, large_kernel):
    """On its own: four branches side by side, in the order of the paper's figure."""
    conv = partial(Conv, use_bias=True)
    block = Inception((2, 3, 4, 5, 6, 7), conv, None, large_kernel=large_kernel)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    rng = np.random.default_rng(1)
    single = x.astype("float32")
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), single))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)["params"]

    def unit(y, name):
        return np.maximum(np_conv(y, params[name]["conv"]), 0)

    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    shifts = [padded[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
    expected = np.concatenate(
        [
            unit(x, "branch1"),
            unit(unit(x, "branch2_reduce"), "branch2"),
            unit(unit(x, "branch3_reduce"), "branch3"),
            unit(np.max(shifts, axis=0), "branch4"),
        ],
        axis=-1,
    )
    assert params["branch3"]["conv"]["kernel"].shape[0] == large_kernel
    assert expected.shape[-1] == 2 + 4 + 6 + 7
    found = block.apply({"params": params}, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def unit(features, kernel_size, *, name):
    return ConvUnit(
        features, kernel_size, 1, partial(Conv, use_bias=True), None, nn.relu, name=name
    )


def test_auxiliary_head_pools_as_in_the_paper():
    """5x5 windows of stride 3: 14 pixels become 4; torchvision takes a grid of 4."""
    x = np.random.default_rng(0).normal(size=(2, 14, 14, 6)).astype("float32")
    init = partial(AuxiliaryHead(7, unit, nn.relu, None, 0.7).init, train=False)
    variables = jax.jit(init)(jax.random.key(0), x)
    assert set(variables) == {"params"}
    p = jax.device_get(variables["params"])
    windows = [slice(3 * i, 3 * i + 5) for i in range(4)]
    cells = [slice(i * 14 // 4, -(-(i + 1) * 14 // 4)) for i in range(4)]
    found = {}
    for grid, places in ((None, windows), (4, cells)):
        pooled = [[x[:, i, j].mean((1, 2)) for j in places] for i in places]
        pooled = np.transpose(pooled, (2, 0, 1, 3))
        y = np.maximum(np_conv(pooled, p["conv"]["conv"]), 0).reshape(2, -1)
        y = np.maximum(y @ p["fc"]["kernel"] + p["fc"]["bias"], 0)
        expected = y @ p["head"]["kernel"] + p["head"]["bias"]
        head = AuxiliaryHead(7, unit, nn.relu, grid, 0.7)
        found[grid] = head.apply(variables, x, train=False)
        np.testing.assert_allclose(found[grid], expected, rtol=0, atol=1e-5)
    assert not np.allclose(found[None], found[4], atol=1e-4)


def test_dropout_of_an_auxiliary_head_by_numpy():
    head = AuxiliaryHead(7, unit, nn.relu, 4, 0.7)
    x = np.random.default_rng(0).normal(size=(4, 4, 4, 6)).astype("float32")
    variables = jax.jit(partial(head.init, train=False))(jax.random.key(0), x)
    run = partial(head.apply, train=True, mutable=True, capture_intermediates=True)
    rngs = {"dropout": jax.random.key(1)}
    logits, updates = jax.jit(run)(variables, x, rngs=rngs)
    features = updates["intermediates"]
    y = np.maximum(np.asarray(features["fc"]["__call__"][0]), 0)
    dropped = np.asarray(features["Dropout_0"]["__call__"][0])
    kept = dropped != 0
    np.testing.assert_allclose(dropped, np.where(kept, y / 0.3, 0), rtol=1e-5)
    assert abs(kept.sum() / (y > 0).sum() - 0.3) < 0.05
    p = jax.device_get(variables["params"]["head"])
    np.testing.assert_allclose(logits, dropped @ p["kernel"] + p["bias"], 1e-4, 1e-5)


def np_pool(x, window=3):
    """Maxima of windows of stride 2 that begin within x, the last ones cut off."""
    n = -(-(x.shape[1] - window) // 2) + 1
    rows = [slice(2 * i, 2 * i + window) for i in range(n)]
    pooled = [[x[:, i, j].max((1, 2)) for j in rows] for i in rows]
    return np.transpose(pooled, (2, 0, 1, 3))


def np_normalised(x):
    """Caffe's constants: k = 1, alpha / n = 2e-5, n = 5, beta = 0.75."""
    channels = range(x.shape[-1])
    near = [(x[..., max(0, i - 2) : i + 3] ** 2).sum(-1) for i in channels]
    return x / (1 + 2e-5 * np.stack(near, axis=-1)) ** 0.75


def test_trunk_of_2014_by_numpy(random_variables):
    """Where it normalises and pools: what follows is taken from what came before."""
    model = create_model("googlenet_2014", num_classes=5)
    variables = random_variables(model, (64, 64, 3))
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    run = partial(
        model.apply,
        train=True,
        mutable=["intermediates", "aux_logits"],
        capture_intermediates=True,
    )
    # Pixels of the size that images have in Caffe, so that normalising matters.
    rngs = {"dropout": jax.random.key(1)}
    logits, updates = jax.jit(run)(variables, 300 * x, rngs=rngs)
    features = jax.device_get(updates["intermediates"])
    p = jax.device_get(variables["params"])

    def output(name):
        return np.asarray(features[name]["__call__"][0], np.float64)

    def check(found, before, params):
        expected = np.maximum(np_conv(before, params["conv"]), 0)
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=1e-4 * np.abs(expected).max()
        )

    conv1, conv3 = output("conv1"), output("conv3")
    assert conv1.shape[1] == 32
    first = np_normalised(np_pool(conv1))
    assert np.abs(first - np_pool(conv1)).max() > 0.05 * conv1.max()
    check(output("conv2"), first, p["conv2"])
    for before, after, name in (
        (np_pool(np_normalised(conv3)), "inception3a", "branch1"),
        (np_pool(output("inception3b")), "inception4a", "branch1"),
        (np_pool(output("inception4e")), "inception5a", "branch1"),
    ):
        found = features[after][name]["__call__"][0]
        check(found, before, p[after][name])
    pooled = output("inception5b").mean((1, 2))
    dropped = np.asarray(features["Dropout_0"]["__call__"][0])
    kept = dropped != 0
    np.testing.assert_allclose(dropped, np.where(kept, pooled / 0.6, 0), rtol=1e-4)
    head = p["head"]
    expected = dropped @ head["kernel"] + head["bias"]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * scale)


def shapes_of(model, size=32):
    image = np.zeros((1, size, size, 3), "float32")
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)


@pytest.mark.parametrize("name", ["googlenet_2014", "googlenet"])
def test_heads_are_there_in_training_alone(name):
    model = create_model(name, num_classes=5)
    variables = shapes_of(model, 96)
    assert {"aux1", "aux2"} < set(variables["params"])
    assert set(variables) <= {"params", "batch_stats"}
    image = np.zeros((2, 96, 96, 3), "float32")
    run = partial(
        model.apply,
        rngs={"dropout": jax.random.key(0)},
        mutable=["aux_logits", "batch_stats"],
    )
    _, updates = jax.eval_shape(partial(run, train=True), variables, image)
    heads = updates["aux_logits"]
    assert set(heads) == {"aux1", "aux2"}
    assert all(head["logits"][0].shape == (2, 5) for head in heads.values())
    without = {
        collection: {k: v for k, v in tree.items() if not k.startswith("aux")}
        for collection, tree in variables.items()
    }
    logits, updates = jax.eval_shape(partial(run, train=False), without, image)
    assert logits.shape == (2, 5) and "aux_logits" not in updates
    bare = create_model(name, num_classes=5, aux_heads=False)
    assert shapes_of(bare, 96) == without


class TwoHeads(Network):
    """A network with an auxiliary head, small enough to be trained in a test."""

    @nn.compact
    def __call__(self, images, *, train, gates=None, paths=None):
        x = images.mean(axis=(1, 2))
        if train or self.is_initializing():
            y = nn.Dense(self.num_classes, name="aux")(x)
            if not self.is_initializing():
                self.sow("aux_logits", "logits", y)
        return self.classify(x)


def test_heads_change_the_loss_but_not_the_logits():
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (6, 4, 4, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, 6).astype(np.int32),
        "mask": np.array([True] * 5 + [False]),
    }

    def preprocess(key, images, first_index):
        return images.astype("float32") / 255

    model, tx = TwoHeads(), optax.sgd(0.1)
    state = train.create_state(
        jax.random.key(0), model=model, tx=tx, image_shape=(4, 4, 3)
    )
    state = state.replace(
        params=jax.tree.map(
            lambda a: jnp.asarray(rng.normal(size=a.shape), "float32"), state.params
        )
    )

    def step(**settings):
        step = train.make_train_step(
            model=model, tx=tx, preprocess=preprocess, **settings
        )
        return jax.jit(step)(state, batch, jax.random.key(1))

    x = (batch["image"] / 255).mean(axis=(1, 2))

    def loss(head):
        p = jax.device_get(state.params[head])
        sums = metrics.classification_sums(
            jnp.asarray(x @ p["kernel"] + p["bias"]), batch["label"], batch["mask"]
        )
        return float(sums["loss"])

    for weight, (after, sums) in (
        (0.3, step()),
        (0.0, step(aux_loss_weight=0.0)),
        (1.0, step(aux_loss_weight=1.0)),
    ):
        expected = loss("head") + weight * loss("aux")
        np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)
        moved = np.any(after.params["aux"]["kernel"] != state.params["aux"]["kernel"])
        assert moved == (weight > 0)
    image = preprocess(None, batch["image"], 0)
    run = partial(model.apply, {"params": state.params}, image)
    np.testing.assert_array_equal(
        run(train=True, mutable=["aux_logits"])[0], run(train=False)
    )


@pytest.mark.slow
def test_googlenets_heads_leave_its_logits_alone(random_variables):
    fields = {"stem": "small", "num_classes": 5, "dropout": 0.0}
    model = create_model("googlenet_2014", **fields)
    variables = random_variables(model, (16, 16, 3))
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    run = partial(model.apply, rngs={"dropout": jax.random.key(0)})
    with_heads, updates = jax.jit(partial(run, train=True, mutable=["aux_logits"]))(
        variables, x
    )
    assert len(updates["aux_logits"]) == 2
    without = jax.jit(partial(run, train=False))(variables, x)
    np.testing.assert_allclose(with_heads, without, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_dense_evaluation_averages_the_scores_of_all_places(random_variables):
    """It ends in a mean over all pixels, so the same network evaluates whole images."""
    model = create_model("googlenet", stem="small", num_classes=5)
    assert model.for_whole_images() is model
    variables = random_variables(model, (16, 16, 3))
    x = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype("float32")
    last = jax.jit(lambda v, x: rn_jax.features(model, v, x, ["final"])["final"])(
        variables, x
    )
    assert last.shape[1] * last.shape[2] > 1
    head = variables["params"]["head"]
    scores = np.asarray(last) @ head["kernel"] + head["bias"]
    logits = jax.jit(partial(model.apply, train=False))(variables, x)
    np.testing.assert_allclose(logits, scores.mean(axis=(1, 2)), rtol=1e-4, atol=1e-4)
