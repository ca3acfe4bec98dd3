# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth against the numbers and equations of Huang et al. 2016."""

import dataclasses
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import rn_jax
from rn_jax import InputError, StochasticDepth, block_variables
from rn_jax.models.resnet import ResNet
from rn_jax.stochastic_depth import open_shares

HALF = StochasticDepth(last_survival=0.5)


def test_linear_decay():
    probs = rn_jax.survival_probs(HALF, 54)
    assert probs.shape == (54,) and probs.dtype == jnp.float32
    papers = {1: 0.99074, 18: 0.83333, 19: 0.82407, 36: 0.66667, 37: 0.65741, 54: 0.5}
    for block, p in papers.items():
        assert abs(probs[block - 1] - p) < 5e-6
    np.testing.assert_allclose(np.diff(probs), -0.5 / 54, atol=1e-6)


@pytest.mark.parametrize(
    "num_blocks, last_survival, expected",
    [
        (54, 0.5, 40.25),
        (75, 0.5, 56.0),
        (600, 0.5, 449.75),
        (50, 0.5, 37.25),
        (54, 0.2, 32.0),
        (54, 1.0, 54.0),
        (0, 0.5, 0.0),
    ],
)
def test_expected_number_of_open_blocks(num_blocks, last_survival, expected):
    settings = StochasticDepth(last_survival)
    ours = rn_jax.expected_open_blocks(settings, num_blocks)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert rn_jax.sample_gates(jax.random.key(0), settings, num_blocks).shape == (
        num_blocks,
    )


@pytest.fixture(scope="module")
def draws():
    """Gates of 10,000 mini-batches of ResNet-110."""
    keys = jax.random.split(jax.random.key(0), 10_000)
    draw = jax.jit(jax.vmap(lambda key: rn_jax.sample_gates(key, HALF, 54)))
    return np.asarray(draw(keys))


def test_every_block_is_open_as_often_as_it_should(draws):
    assert draws.dtype == np.float32
    assert set(np.unique(draws)) == {0, 1}
    p = 1 - np.arange(1, 55) / 54 * 0.5
    errors = (draws.mean(0) - p) / np.sqrt(p * (1 - p) / len(draws))
    assert np.abs(errors).max() < 5
    spread = np.sqrt((p * (1 - p)).sum() / len(draws))
    assert abs(draws.sum(1).mean() - 40.25) < 5 * spread


def test_blocks_are_independent(draws):
    correlation = np.corrcoef(draws.T) - np.eye(54)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(draws))
    # All pairs together: were they drawn from one number, this would be far from 0.
    p = 1 - np.arange(1, 55) / 54 * 0.5
    np.testing.assert_allclose(draws.sum(1).var(), (p * (1 - p)).sum(), rtol=0.05)


def test_one_key_one_draw():
    gates = [
        np.asarray(rn_jax.sample_gates(jax.random.key(seed), HALF, 54))
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(gates[0], gates[1])
    assert np.any(gates[0] != gates[2])


def test_probability_of_one_never_closes_a_block():
    keys = jax.random.split(jax.random.key(0), 1000)
    always = StochasticDepth(last_survival=1.0)
    draw = jax.vmap(lambda key: rn_jax.sample_gates(key, always, 5))
    assert np.all(np.asarray(draw(keys)) == 1)


@pytest.mark.parametrize("last_survival", [0, -0.1, 1.01, float("nan")])
def test_probability_outside_its_range(last_survival):
    with pytest.raises(InputError, match=r"p_L .* must be in \(0, 1\], not .*\.$"):
        StochasticDepth(last_survival)


@pytest.mark.parametrize(
    "value",
    [
        *(make(0.5) for make in (np.float16, np.float32, np.float64, jnp.bfloat16)),
        jnp.float32(0.5),
        np.array(0.5),
    ],
    ids=repr,
)
def test_numbers_of_every_type_are_probabilities(value):
    for settings in (StochasticDepth(value), StochasticDepth(schedule=[value, 1])):
        fields = dataclasses.asdict(settings)
        assert StochasticDepth(**json.loads(json.dumps(fields))) == settings
        assert pickle.loads(pickle.dumps(settings)) == settings
    assert StochasticDepth(value) == HALF
    assert hash(settings) == hash(StochasticDepth(schedule=(0.5, 1.0)))


def test_arrays_are_schedules():
    expected = (1.0, 0.75, 0.5)
    for linspace in (jnp.linspace, np.linspace):
        settings = StochasticDepth(schedule=linspace(1, 0.5, 3))
        assert settings.schedule == expected
        assert all(type(p) is float for p in settings.schedule)
        np.testing.assert_array_equal(rn_jax.survival_probs(settings, 3), expected)
    for number in (np.int64(3), jnp.int32(3)):
        settings = StochasticDepth(schedule="uniform", num_open=number)
        assert type(settings.num_open) is int and settings.num_open == 3


@pytest.mark.parametrize(
    "fields",
    [
        *({"last_survival": v} for v in ("0.5", b"1", None, True, np.True_, [0.5])),
        *({"last_survival": v} for v in (1 + 0j, np.complex64(1), 10**400, np.ones(2))),
        *({"schedule": v} for v in (0.5, None, "lin", ["a"], [None], [True], [0.5, 0])),
        *({"schedule": v} for v in (np.ones((2, 2)), np.array(0.5), np.zeros(100))),
        *({"schedule": v} for v in ({0.5, 1.0}, {0.5: 1})),
        *({"num_open": v, "schedule": "uniform"} for v in (3.0, True, "3", 0, -1)),
        *({"granularity": v} for v in (None, [], np.array(["batch", "example"]))),
        *({"scaling": v} for v in (None, 1, {})),
        {"closed_statistics": []},
    ],
    ids=str,
)
def test_values_without_a_meaning(fields):
    with pytest.raises(InputError, match=f"^{next(iter(fields))}.* must be ") as error:
        StochasticDepth(**fields)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(
    "make", [StochasticDepth, lambda p: StochasticDepth(schedule=[p, p])]
)
def test_probabilities_are_not_traced(make):
    with pytest.raises(InputError, match=r"must be in \(0, 1\], not .*Tracer"):
        jax.jit(lambda p: rn_jax.survival_probs(make(p), 2))(0.5)


# --- The test rule --------------------------------------------------------------------


def residual(x, block):
    """f(x) = BN(conv(relu(BN(conv(x))))) at test, from one block's variables."""

    def conv_bn(x, n, stride):
        y = lax.conv_general_dilated(
            x,
            block["params"][f"conv{n}"]["kernel"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        affine, stats = (
            {
                key: value.reshape(1, 1, 1, -1)
                for key, value in block[c][f"bn{n}"].items()
            }
            for c in ("params", "batch_stats")
        )
        y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        return y * affine["scale"] + affine["bias"]

    widens = block["params"]["conv1"]["kernel"].shape[2:] == (4, 8)
    return conv_bn(np.maximum(conv_bn(x, 1, 2 if widens else 1), 0), 2, 1)


def test_test_rule(x64, random_variables):
    model = ResNet(
        (2, 2), num_classes=None, features=(4, 8), stochastic_depth=StochasticDepth(0.2)
    )
    variables = random_variables(model, (6, 6, 4), "float64")
    # A stem that passes its input on, so that the blocks are all there is.
    stem = np.zeros((3, 3, 4, 4))
    stem[1, 1] = np.eye(4)
    ones, zeros = np.ones(4), np.zeros(4)
    variables["params"]["stem_conv"]["kernel"] = stem
    variables["params"]["stem_bn"] = {"scale": ones, "bias": zeros}
    variables["batch_stats"]["stem_bn"] = {"mean": zeros, "var": ones - 1e-5}

    images = np.random.default_rng(0).uniform(size=(2, 6, 6, 4))
    x = images
    probs = np.asarray(rn_jax.survival_probs(StochasticDepth(0.2), 4), "float64")
    np.testing.assert_allclose(probs, [0.8, 0.6, 0.4, 0.2], rtol=1e-6)
    for index, p in enumerate(probs):
        shortcut = x
        if index == 2:
            shortcut = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 4)))
        x = np.maximum(p * residual(x, block_variables(variables, index)) + shortcut, 0)

    run = jax.jit(model.apply, static_argnames="train")
    ours = run(variables, images, train=False)
    np.testing.assert_allclose(ours, x.mean((1, 2)), rtol=0, atol=1e-12)
    # The same through explicit gates; gates of ones are another network.
    np.testing.assert_allclose(
        run(variables, images, train=False, gates=probs), ours, rtol=0, atol=1e-12
    )
    assert (
        np.abs(run(variables, images, train=False, gates=probs**0) - ours).max() > 0.1
    )
    gates = rn_jax.eval_gates(StochasticDepth(0.2), 4)
    np.testing.assert_array_equal(gates, np.float32(probs))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"schedule": "linear_from_zero"},
        {"schedule": (0.9, 0.8, 0.7, 0.6)},
        {"schedule": "uniform", "num_open": 2},
        {"scaling": "none", "closed_statistics": "updated"},
        {"granularity": "example", "scaling": "training"},
        {"granularity": "subset", "schedule": "uniform"},
    ],
    ids=str,
)
def test_64_bits_change_no_gate(same_in_64_bits, fields):
    """Gates and probabilities are f32, indices i32; and the draws are the same."""
    settings = StochasticDepth(0.5, **fields)

    def compute():
        gates = rn_jax.sample_gates(jax.random.key(0), settings, 4, 6, jnp.int32(2))
        return {
            "gates": gates,
            "test": rn_jax.eval_gates(settings, 4),
            "probs": rn_jax.survival_probs(settings, 4),
            "shares": open_shares(gates, 6),
            "expected": rn_jax.expected_open_blocks(settings, 4),
        }

    same_in_64_bits(compute)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(compute())} <= {
        "float32",
        "int32",
    }
