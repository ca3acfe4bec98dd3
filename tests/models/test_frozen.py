# SPDX-License-Identifier: Apache-2.0
"""Frozen parts: what belongs to one, and that it runs, and stays, as at test."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sizes import FAMILIES, narrow

import rn_jax
from rn_jax import InputError, StochasticDepth, create_model, train
from rn_jax.models.densenet import DenseNet
from rn_jax.models.fractalnet import FractalNet
from rn_jax.models.resnet import ResNet
from rn_jax.models.vgg import VGG

X = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")


def changed(variables, modules):
    """The variables, with other parameters of these modules."""
    params = {
        name: jax.tree.map(lambda leaf: 1 - leaf, tree) if name in modules else tree
        for name, tree in variables["params"].items()
    }
    return {**variables, "params": params}


# Families of `make test`.
QUICK = (ResNet, DenseNet, FractalNet, VGG)

EACH = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=() if kind in QUICK else pytest.mark.slow,
        )
        for kind, name in FAMILIES.items()
    ],
    ids=str,
)


@EACH
def test_a_part_computes_the_feature_of_its_name(name, random_variables):
    """From its modules and those of earlier parts, but no later ones."""
    model = narrow(name)
    variables = random_variables(model, X.shape[1:])
    run = jax.jit(partial(rn_jax.features, model, names=model.parts))
    found, before = run(variables, X), set()
    for part, modules in model.parts.items():
        before |= set(modules)
        later = set(variables["params"]) - before
        np.testing.assert_array_equal(
            run(changed(variables, later), X)[part], found[part]
        )
        for module in set(modules) & set(variables["params"]):
            other = run(changed(variables, [module]), X)[part]
            assert np.any(other != found[part]), module
    assert {f"stage{block.stage}" for block in model.blocks} <= set(model.parts)
    rest = set(variables["params"]) - before
    assert all(module.startswith(("head", "fc", "aux")) for module in rest)


@EACH
def test_frozen_parts_of_every_family(name, random_variables):
    """In training they are as at test, and the rest of the network trains."""
    model = narrow(name)
    first, *_, last = [*model.parts, *model.parts]
    frozen = model.copy(frozen=[first, last])
    assert frozen.frozen == (first, last)
    variables = random_variables(model, X.shape[1:])

    def loss(params, model):
        logits, updates = model.apply(
            {**variables, "params": params},
            X,
            train=True,
            rngs={"dropout": jax.random.key(0), "gates": jax.random.key(1)},
            mutable=["batch_stats", "aux_logits"],
        )
        heads = [logits, *jax.tree.leaves(updates.get("aux_logits"))]
        loss = sum(jnp.square(logits).sum() for logits in heads)
        return loss, updates.get("batch_stats", {})

    gradient = jax.jit(jax.grad(partial(loss, model=frozen), has_aux=True))
    grads, stats = gradient(variables["params"])
    still = {name for name, tree in grads.items() if not moves(tree)}
    assert still == frozen.frozen_modules & set(grads)
    kept = {name for name in stats if same(stats, variables["batch_stats"], name)}
    assert kept == frozen.frozen_modules & set(stats)

    def of_first(train):
        call = {"train": train, "mutable": ["batch_stats"]}
        rngs = {"dropout": jax.random.key(0), "gates": jax.random.key(1)}
        run = partial(rn_jax.features, frozen, names=[first], rngs=rngs, **call)
        return jax.jit(run)(variables, X)[0][first]

    np.testing.assert_allclose(of_first(True), of_first(False), rtol=1e-5, atol=1e-5)


def moves(tree):
    return any(np.any(leaf) for leaf in jax.tree.leaves(tree))


def same(new, old, name):
    leaves = zip(jax.tree.leaves(new[name]), jax.tree.leaves(old[name]), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


SIZES = {"stage_sizes": (2, 2, 2), "features": (4, 8, 8), "num_classes": 3}
GRANULARITIES = {
    "none": None,
    "batch": StochasticDepth(0.5),
    "shake": StochasticDepth(
        0.5, shake="example", shake_forward=(-1.0, 1.0), shake_backward=(0.0, 1.0)
    ),
}


@pytest.mark.parametrize(
    "depth",
    [
        pytest.param("none", marks=pytest.mark.slow),
        "batch",
        pytest.param("shake", marks=pytest.mark.slow),
    ],
)
def test_frozen_stages_stay_as_they_are_in_training(depth):
    """Bit for bit, with momentum and weight decay on everything; the rest moves."""
    settings = GRANULARITIES[depth]
    model = ResNet(**SIZES, stochastic_depth=settings, frozen=("stem", "stage1"))
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    parts = {"model": model, "tx": tx, "ema_decay": 0.9}
    state = train.create_state(jax.random.key(0), image_shape=(8, 8, 3), **parts)
    begin = jax.device_get(state)
    step = train.make_train_step(
        preprocess=lambda key, images, first: images.astype(jnp.float32) / 255 - 0.5,
        gates_from_step=2,
        **parts,
    )
    step = jax.jit(step)
    rng = np.random.default_rng(1)
    images = rng.integers(256, size=(8, 8, 8, 3)).astype("uint8")
    batch = {"image": images, "label": np.arange(8, dtype="int32") % 3}
    batch["mask"] = np.ones(8, bool)
    for _ in range(6):
        state, metrics = step(state, batch, jax.random.key(2))
        np.testing.assert_array_equal(metrics["open"][:2], 1 if depth != "shake" else 0)
    for collection in ("params", "batch_stats"):
        for new in (getattr(state, collection), state.ema[collection]):
            old = getattr(begin, collection)
            kept = {name for name in new if same(new, old, name)}
            assert kept == {"stem_conv", "stem_bn", "stage1"} & set(new), collection


def test_the_frozen_part_of_a_training_step_is_that_at_test(random_variables):
    """Its branches are multiplied by p_l, not by what is drawn."""
    settings = StochasticDepth(0.3)
    model = ResNet(**SIZES, stochastic_depth=settings)
    frozen = model.copy(frozen=("stem", "stage1", "stage2"))
    variables = random_variables(model, X.shape[1:])

    @partial(jax.jit, static_argnames=("model", "train"))
    def stage2(model, train):
        found = rn_jax.features(
            model,
            variables,
            X,
            ["stage2"],
            train=train,
            rngs={"gates": jax.random.key(3)},
            mutable=["batch_stats"],
        )
        return found[0]["stage2"]

    expected = stage2(model, False)
    np.testing.assert_allclose(stage2(frozen, True), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(stage2(model, True) - expected).max() > 0.1


def test_gradients_pass_through_a_frozen_stage(random_variables, x64):
    """Against differences of the loss along one direction."""
    model = ResNet(**SIZES, frozen=("stage1", "stage2", "stage3"))
    variables = random_variables(model, X.shape[1:], "float64")

    params, images = variables["params"], X.astype("float64")

    @jax.jit
    def loss(kernel):
        whole = {**variables, "params": {**params, "stem_conv": {"kernel": kernel}}}
        call = {"train": True, "mutable": ["batch_stats"]}
        return jnp.square(model.apply(whole, images, **call)[0]).sum()

    kernel = params["stem_conv"]["kernel"]
    direction = np.random.default_rng(2).normal(size=kernel.shape)
    ahead, behind = (loss(kernel + step * direction) for step in (1e-6, -1e-6))
    expected = (ahead - behind) / 2e-6
    found = (jax.jit(jax.grad(loss))(kernel) * direction).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_drop_path_of_a_frozen_block_is_off():
    model = FractalNet((4, 4), columns=2, drop_path=0.9, frozen=("stage2",))
    gates = model.draw_gates(jax.random.key(0), 4)
    assert not gates.all()
    kept = model.as_at_test_where_frozen(gates)
    half = len(gates) // 2
    np.testing.assert_array_equal(kept[:half], gates[:half])
    np.testing.assert_array_equal(kept[half:], 1)


def test_wrong_names_are_refused():
    with pytest.raises(InputError, match=r"Unknown part to freeze 'stage4'; similar"):
        create_model("resnet20", frozen=("stage4",))
    with pytest.raises(InputError, match=r'such as \("stem", "stage1"\), not .stem.'):
        create_model("resnet20", frozen="stem")
    subset = StochasticDepth(0.5, schedule="uniform", granularity="subset")
    with pytest.raises(InputError, match="frozen cannot be combined with the granul"):
        create_model("resnet20", frozen=("stem",), stochastic_depth=subset)
