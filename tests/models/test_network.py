# SPDX-License-Identifier: Apache-2.0
"""What every network does with its fields and arguments, and that it can be pickled."""

import copy
import multiprocessing
import pickle
import re
from functools import partial
from typing import Literal, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rn_jax
from rn_jax import InputError, StochasticDepth, Subset, create_model
from rn_jax.checkpoint import OtherNetworkError
from rn_jax.models import MODELS
from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm
from rn_jax.parallel import AloneError

SIZES = {"stage_sizes": (1, 1, 1), "features": (4, 8, 8)}


def small(name="resnet20", **fields):
    return create_model(name, **{**SIZES, **fields})


def logits_by_shape(model, shape=(2, 8, 8, 3), dtype="float32", **arguments):
    """Shapes alone: of the logits, for variables of 8x8 images with three channels."""
    arguments = {"train": False, **arguments}

    def run(images):
        rngs = {"params": jax.random.key(0)}
        variables = model.init(rngs, jnp.zeros((1, 8, 8, 3)), train=False)
        rngs = {"dropout": rngs["params"], "gates": rngs["params"]}
        mutable = ["batch_stats", "aux_logits"]
        return model.apply(variables, images, rngs=rngs, mutable=mutable, **arguments)

    return jax.eval_shape(run, jax.ShapeDtypeStruct(shape, dtype))[0].shape


def one_sentence(error):
    message = str(error.value)
    return message.endswith(".") and "\n" not in message and ". " not in message


# --- Gates and paths ------------------------------------------------------------------

GATES = (1, 0, 1)
AS_GIVEN = {
    "list": list(GATES),
    "tuple": GATES,
    "list of JAX's": [jnp.float32(gate) for gate in GATES],
    **{d: np.array(GATES, d) for d in ("int64", "uint8", "bool", "float64", "float16")},
    **{f"jax {d}": jnp.array(GATES, d) for d in ("int32", "bool", "bfloat16")},
}


@pytest.mark.parametrize("kind", AS_GIVEN)
def test_numbers_of_every_type_are_gates_and_paths(kind):
    given, images = AS_GIVEN[kind], np.zeros((2, 8, 8, 3), "float32")
    for found in small().bind({}).resolve_gates(images, given, given, train=False):
        np.testing.assert_array_equal(found, GATES)
        assert jnp.issubdtype(found.dtype, jnp.floating)


def test_lists_are_used_as_arrays_are(random_variables):
    model = small()
    variables = random_variables(model, (8, 8, 3))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), "float32")

    @jax.jit
    def run(gates, paths):
        def total(images):
            logits = model.apply(
                variables, images, train=False, gates=gates, paths=paths
            )
            return (logits**2).sum(), logits

        return jax.grad(total, has_aux=True)(images)

    expected = run(np.array(GATES, "float32"), np.array(GATES, "float32"))
    jax.tree.map(np.testing.assert_array_equal, run([1.0, 0.0, 1.0], GATES), expected)


BAD_GATES = {
    "strings": ["a"] * 3,
    "None": [None] * 3,
    "ragged": [[1, 2], [1], [3]],
    "complex": np.ones(3, "complex64"),
    "too few": [1.0],
    "scalar": True,
    "dict": {},
    "huge": [10**400] * 3,
    "key": jax.random.key(0),
}


@pytest.mark.parametrize("argument", ["gates", "paths"])
@pytest.mark.parametrize("kind", BAD_GATES)
def test_what_is_no_gate(kind, argument):
    with pytest.raises(InputError, match=f"^{argument} must ") as error:
        logits_by_shape(small(), **{argument: BAD_GATES[kind]})
    assert one_sentence(error)


def test_subsets():
    assert logits_by_shape(small(), gates=Subset([[0]] * 3, [[1]] * 3)) == (2, 10)
    for indices, weights in (
        (np.zeros((3, 1)), np.ones((3, 1))),
        (np.zeros((2, 1), int), np.ones((2, 1))),
        (np.zeros(3, int), np.ones(3)),
        (np.zeros((3, 1), int), np.ones((3, 2))),
    ):
        with pytest.raises(InputError, match=r"^gates\.(indices|weights) must ") as e:
            logits_by_shape(small(), gates=Subset(indices, weights))
        assert one_sentence(e)


# --- Images ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, dtype, train, match",
    [
        ((8, 8, 3), "float32", False, r"must be \[B, H, W, C\]"),
        ((2,), "float32", False, r"must be \[B, H, W, C\]"),
        ((), "float32", False, r"must be \[B, H, W, C\]"),
        ((2, 8, 8, 3, 1), "float32", False, r"must be \[B, H, W, C\]"),
        ((2, 8, 8, 1), "float32", False, "takes 3 channels"),
        ((2, 0, 8, 3), "float32", False, "are empty: they must have pixels"),
        ((2, 8, 8, 0), "float32", True, "are empty: they must have pixels"),
        ((0, 8, 8, 3), "float32", True, "and, in training, examples"),
        ((2, 8, 8, 3), "int32", False, "floating-point numbers, not int32"),
    ],
)
def test_what_are_no_images(shape, dtype, train, match):
    with pytest.raises(InputError, match=match) as error:
        logits_by_shape(small(), shape, dtype, train=train)
    assert one_sentence(error)


def test_images_that_are_no_arrays():
    for images in ([[1.0]], None):
        with pytest.raises(InputError, match=r"point numbers, not (list|None)"):
            small().apply({}, images, train=False)


def test_an_image_of_another_size_for_a_fully_connected_network():
    with pytest.raises(InputError, match="takes images of 192 numbers, not of shape"):
        logits_by_shape(create_model("highway10_mnist"), (2, 8, 8, 1))


@pytest.mark.parametrize(
    "model",
    [
        small(),
        create_model("densenet40_12", stage_sizes=(1, 1, 1)),
        create_model("highway10_mnist", depth=2),
        create_model("highway19"),
        create_model("vgg11"),
        create_model("alexnet", stem="small"),
        create_model("googlenet"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_no_images_have_no_logits(model):
    shape = logits_by_shape(model, (0, 8, 8, 3))
    assert shape == (0, model.num_classes)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_smallest_images_of_alexnet(name):
    """An 11x11 window with two pixels of padding on each side takes 7 pixels."""

    def logits(side):
        image = jax.ShapeDtypeStruct((2, side, side, 3), "float32")
        init = partial(create_model(name).init_with_output, train=False)
        return jax.eval_shape(init, jax.random.key(0), image)[0].shape

    assert logits(7) == (2, 1000)
    with pytest.raises(
        InputError, match="conv1 takes images of at least 7 pixels"
    ) as e:
        logits(6)
    assert one_sentence(e)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize(
    "name", ["resnet20", "plain18_max_pool", "densenet40_12", "vgg11", "googlenet"]
)
def test_other_networks_take_the_smallest_images(name, side):
    fields = {"stage_sizes": (1, 1, 1)} if name in ("resnet20", "densenet40_12") else {}
    model = create_model(name, **fields)
    shape = jax.eval_shape(
        partial(model.init_with_output, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, side, side, 3), "float32"),
    )[0].shape
    assert shape == (2, model.num_classes)


# --- Fields ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3), jnp.int32(3)])
def test_integers_of_every_type_are_counts(value, tmp_path, random_variables):
    model = small(
        num_classes=value, stage_sizes=[value, 1, 1], features=np.array([4, 8, 8])
    )
    assert model == small(num_classes=3, stage_sizes=(3, 1, 1))
    assert type(model.num_classes) is int
    path = tmp_path / "net.safetensors"
    rn_jax.save(path, model, random_variables(model, (8, 8, 3)))
    assert rn_jax.load(path)[0] == model


@pytest.mark.parametrize(
    "fields",
    [
        *({"num_classes": v} for v in (0, -1, 2.0, True, "3", (3,), np.True_)),
        *(
            {"stage_sizes": v}
            for v in ((1, 0, 1), (1.0, 1, 1), "111", 3, None, (True,))
        ),
        {"features": (4, 0, 8)},
        {"stem_features": 0},
        {"stochastic_depth": {"last_survival": 0.5}},
        {"norm": None},
        {"norm": "batch"},
        {"norm": nn.GroupNorm(2)},
        {"norm": nn.relu},
        {"norm": nn.WeightNorm},
        {"norm": partial(nn.GroupNorm, groups=2)},
        {"conv": None},
        {"conv": nn.Conv},
        {"conv": Conv(8)},
        {"activation": None},
        {"activation": "relu"},
        {"dtype": "bf16"},
        {"dtype": jnp.int32},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_without_a_meaning(fields):
    with pytest.raises(InputError, match=f"^{next(iter(fields))} must be ") as error:
        small(**fields)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


FAMILIES = {type(create_model(name)).__name__: name for name in MODELS}


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_whole_numbers_and_choices_of_a_family_are_checked(name):
    family = type(create_model(name))
    known = family.__dataclass_fields__
    counts = [n for n, f in known.items() if re.search(r"\bint\b", str(f.type))]
    assert "num_classes" in counts
    sizes = {"stage_sizes": (1,)} if "stage_sizes" in known else {}
    for count in counts:
        with pytest.raises(InputError, match=f"^{count} must be a .* at least 1, not"):
            family(**{**sizes, count: 0})
    for choice in (n for n, f in known.items() if get_origin(f.type) is Literal):
        with pytest.raises(InputError, match=rf'^{choice} must be ".*", not \'no\'\.$'):
            family(**{**sizes, choice: "no"})


def test_groups_that_do_not_divide_the_channels():
    with pytest.raises(InputError, match=r"^norm has 32 groups, .* not divide 4 chan"):
        logits_by_shape(small(norm=nn.GroupNorm))


def test_too_few_features():
    with pytest.raises(InputError, match="an entry for each of 4 stages"):
        logits_by_shape(small(stage_sizes=(1, 1, 1, 1)))


class Scale(nn.Module):
    """A normalisation without any of the fields that BatchNorm has."""

    @nn.compact
    def __call__(self, x):
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        return x * self.param("scale", nn.initializers.ones, shape)


NORMS = {
    "GroupNorm": partial(nn.GroupNorm, num_groups=2),
    "LayerNorm": nn.LayerNorm,
    "RMSNorm": nn.RMSNorm,
    "own": Scale,
}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_without_running_averages(norm):
    """Each example is normalised by itself, in training, at test and over devices."""
    model = small(norm=NORMS[norm])
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
    assert set(variables) == {"params"}
    apply = jax.jit(model.apply, static_argnames="train")
    at_test = apply(variables, images, train=False)
    np.testing.assert_array_equal(apply(variables, images, train=True), at_test)
    on_devices = partial(model.copy(axis_name="d").apply, variables, train=True)
    over_devices = jax.jit(jax.vmap(on_devices, axis_name="d"))(
        images.reshape(2, 2, 8, 8, 3)
    )
    tolerance = 1e-5 * np.abs(at_test).max()
    np.testing.assert_allclose(
        over_devices.reshape(4, 10), at_test, rtol=0, atol=tolerance
    )


def test_batch_norm_of_flax_is_ours(random_variables):
    ours = small()
    flax = small(norm=partial(nn.BatchNorm, momentum=0.9, epsilon=BatchNorm.epsilon))
    variables = random_variables(ours, (8, 8, 3))
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    for train in (False, True):
        expected, found = (
            jax.jit(partial(m.apply, train=train, mutable=["batch_stats"]))(
                variables, images
            )
            for m in (ours, flax)
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


# --- Pickle ---------------------------------------------------------------------------


def copies(thing):
    return pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing)


@pytest.mark.parametrize("name", list(MODELS))
def test_networks_can_be_pickled(name):
    model = create_model(name)
    for again in copies(model):
        assert again == model
        try:
            expected = hash(model)
        except TypeError:  # block_kwargs may be a dict
            continue
        assert hash(again) == expected
    assert copies(MODELS[name]) == (MODELS[name],) * 2


@pytest.mark.parametrize(
    "activation", [nn.relu, nn.silu, nn.gelu, nn.relu6, nn.leaky_relu, jnp.tanh]
)
def test_settings_survive_pickle(activation):
    model = small(
        activation=activation,
        dtype=jnp.bfloat16,
        stochastic_depth=StochasticDepth(schedule=np.full(3, 0.5)),
    )
    for again in copies(model):
        assert again == model and again.activation is activation


def test_functions_inside_of_settings_survive_pickle():
    nested = small(
        activation=partial(nn.leaky_relu, negative_slope=0.1),
        block_kwargs={"activation": nn.relu},
    )
    jitted = small(activation=jax.jit(nn.relu))
    for again in copies(nested):
        assert again.activation.func is nn.leaky_relu
        assert again.activation.keywords == {"negative_slope": 0.1}
        assert again.block_kwargs["activation"] is nn.relu
    for again in copies(jitted):
        np.testing.assert_array_equal(again.activation(np.array([-1.0, 2.0])), [0, 2])


def test_other_values_can_be_pickled():
    [block, *_] = small().blocks
    subset = Subset(np.zeros((1, 1), int), np.ones((1, 1)))
    errors = [
        InputError("No."),
        AloneError("No."),
        OtherNetworkError("No."),
    ]
    for again in copies(block):
        assert again == block
    for again in copies(subset):
        np.testing.assert_array_equal(again.indices, subset.indices)
    for error in errors:
        for again in copies(error):
            assert type(again) is type(error) and str(again) == str(error)


def test_unpickled_network_is_deepened_and_saved(tmp_path, random_variables):
    model = small()
    [again, _] = copies(model)
    variables = random_variables(model, (8, 8, 3))
    deeper, _ = rn_jax.deepen(again, variables, (2, 1, 1), key=jax.random.key(0))
    assert deeper == model.copy(stage_sizes=(2, 1, 1))
    rn_jax.save(tmp_path / "net.safetensors", again, variables)
    loaded, found = rn_jax.load(tmp_path / "net.safetensors")
    assert loaded == model
    images = np.ones((1, 8, 8, 3), "float32")
    np.testing.assert_array_equal(
        logits_of(again, variables, images), logits_of(model, found, images)
    )


def logits_of(model, variables, images):
    return np.asarray(model.apply(variables, images, train=False))


@pytest.mark.slow
def test_networks_go_to_other_processes(random_variables):
    model = small(stochastic_depth=StochasticDepth())
    arguments = model, random_variables(model, (8, 8, 3)), np.ones((1, 8, 8, 3), "f")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(logits_of, arguments)
    np.testing.assert_allclose(theirs, logits_of(*arguments), rtol=0, atol=1e-5)
