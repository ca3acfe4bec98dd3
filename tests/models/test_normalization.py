# SPDX-License-Identifier: Apache-2.0
"""BatchNorm against Flax's own and against numpy; blocks computed again."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rn_jax import InputError, StochasticDepth
from rn_jax.models.normalization import BatchNorm, Identity
from rn_jax.models.resnet import ResNet


def apply(module, variables, x):
    y, updates = module.apply(variables, x, mutable=["batch_stats"])
    weights = jnp.arange(1.0, 4).reshape(1, 1, 1, 3)
    return jnp.sum(jnp.sin(y) * weights), (y, updates["batch_stats"])


def test_values_gradients_and_averages_are_those_of_flax(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (5, 4, 6, 3))
    variables = {
        "params": {"scale": rng.normal(size=3), "bias": rng.normal(size=3)},
        "batch_stats": {"mean": rng.normal(size=3), "var": rng.uniform(1, 2, 3)},
    }
    results = []
    for module in (
        BatchNorm(use_running_average=False),
        nn.BatchNorm(
            use_running_average=False,
            momentum=0.9,
            epsilon=1e-5,
            use_fast_variance=False,
            param_dtype=jnp.float64,
        ),
    ):
        gradient = jax.grad(partial(apply, module), (0, 1), has_aux=True)
        with jax.numpy_dtype_promotion("standard"):  # Flax mixes in a float32
            grads, rest = gradient(variables, x)
        results.append((grads[0]["params"], grads[1], rest))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), *results
    )


def test_identity_is_a_network_without_normalisation():
    """Its batch then matters to no example, and it has convolutions alone."""
    model = ResNet((1, 1), features=(4, 8), norm=Identity)
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    variables = model.init({"params": jax.random.key(0)}, x, train=False)
    assert set(variables) == {"params"}
    assert set(variables["params"]["stage1"]["blocks"]) == {"conv1", "conv2"}
    alone = model.apply(variables, x[:1], train=True)
    np.testing.assert_allclose(
        model.apply(variables, x, train=True)[:1], alone, rtol=1e-5, atol=1e-6
    )


def test_moving_averages_are_used_at_test():
    x = np.float32(np.random.default_rng(0).normal(size=(2, 3, 3, 2)))
    mean, var = np.float32([0.5, -1]), np.float32([4, 0.25])
    scale, bias = np.float32([2, 3]), np.float32([1, -1])
    y = BatchNorm(use_running_average=True).apply(
        {
            "params": {"scale": scale, "bias": bias},
            "batch_stats": {"mean": mean, "var": var},
        },
        x,
    )
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_variance_keeps_its_digits_where_the_mean_is_large():
    """E[x^2] - E[x]^2 in float32 gives 1.49 for a standard deviation of 1."""
    x = np.float32(np.random.default_rng(0).normal(1000, 1, (64, 8, 8, 1)))
    x[0, 0, 0] = 0  # at the edge, as padding changes it
    module = BatchNorm(use_running_average=False, momentum=0.0)
    variables = module.init(jax.random.key(0), x)
    _, updates = module.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(
        updates["batch_stats"]["var"], np.float64(x).var(), rtol=1e-5
    )


def test_bfloat16_is_normalised_in_float32():
    x = jax.random.normal(jax.random.key(0), (8, 4, 4, 2), jnp.bfloat16) + 3
    module = BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), x)
    y, updates = module.apply(variables, x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert updates["batch_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(y.astype(jnp.float32).std(), 1, atol=0.01)


def test_forward_mode_through_a_whole_network(x64, random_variables):
    """With conv_gradient="xla": the derivative along a direction, by differences."""
    model = ResNet((1, 1), features=(4, 8), conv_gradient="xla")
    variables = random_variables(model, (6, 6, 3), "float64")
    x = np.random.default_rng(1).normal(size=(3, 6, 6, 3))
    along = np.random.default_rng(2).normal(size=x.shape)

    def logits(x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    _, tangent = jax.jvp(logits, (x,), (along,))
    h = 1e-6
    difference = (logits(x + h * along) - logits(x - h * along)) / (2 * h)
    np.testing.assert_allclose(tangent, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "depth",
    [
        pytest.param(None, id="constant", marks=pytest.mark.slow),
        pytest.param(StochasticDepth(0.4), id="sd"),
    ],
)
@pytest.mark.parametrize(
    "remat", ["cheap", pytest.param("all", marks=pytest.mark.slow)]
)
def test_blocks_computed_again_change_nothing(x64, random_variables, remat, depth):
    """Values, gradients, and statistics, which are updated once and not twice."""
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3))

    def run(remat):
        model = ResNet((2, 2), features=(4, 8), remat=remat, stochastic_depth=depth)
        variables = random_variables(model, (8, 8, 3), "float64")

        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                rngs={"gates": jax.random.key(3)},
                mutable=["batch_stats"],
            )
            return jnp.sin(logits).sum(), (logits, updates)

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        run("none"),
        run(remat),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_less_is_kept_where_more_is_computed_again():
    """Temporary memory of the gradient: everything, convolutions, inputs of blocks."""
    sizes = []
    for remat in ("none", "cheap", "all"):
        model = ResNet((6, 2), features=(8, 8), remat=remat)
        images = jnp.zeros((32, 16, 16, 3))
        shapes = jax.eval_shape(
            lambda m=model: m.init({"params": jax.random.key(0)}, images, train=False)
        )

        def loss(params, stats, model=model):
            variables = {"params": params, "batch_stats": stats}
            return model.apply(variables, images, train=True, mutable=["batch_stats"])[
                0
            ].sum()

        program = jax.jit(jax.grad(loss)).lower(shapes["params"], shapes["batch_stats"])
        sizes.append(program.compile().memory_analysis().temp_size_in_bytes)
    assert sizes[0] > 1.2 * sizes[1] > 1.2 * 1.2 * sizes[2]


def test_unknown_remat_is_said():
    model = ResNet((1,), features=(4,), remat="some")
    with pytest.raises(InputError, match="remat must be one of none, cheap, all"):
        model.init({"params": jax.random.key(0)}, jnp.zeros((1, 4, 4, 1)), train=False)


@pytest.mark.parametrize("remat, expected", [("none", 3), ("cheap", 3), ("all", 5)])
def test_devices_meet_once_for_the_statistics_of_a_layer(remat, expected):
    """Once forward, and not again where the backward pass computes the cheap part."""
    model = ResNet((2,), features=(4,), axis_name="devices", remat=remat)
    images = jnp.zeros((2, 6, 6, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)

    def loss(params):
        logits, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return (logits**2).sum()

    program = jax.make_jaxpr(jax.grad(loss), axis_env=[("devices", 2)])(
        variables["params"]
    )
    # The stem's, and two in the body of the scan of stage 1.
    assert str(program).count("all_gather[") == expected
