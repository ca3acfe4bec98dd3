# SPDX-License-Identifier: Apache-2.0
"""Exported programs compute what the network does, for batches of any size."""

from functools import partial

import jax
import numpy as np
import pytest

from rn_jax import InputError, StochasticDepth, create_model, data
from rn_jax.interop import from_stablehlo, to_stablehlo
from rn_jax.models import MODELS


@pytest.mark.parametrize(
    "name, side, fields",
    [
        ("resnet20", 8, {"stochastic_depth": StochasticDepth()}),
        ("highway10_mnist", 28, {}),
        ("densenet_bc40_36", 8, {"stage_sizes": (2, 1)}),
        pytest.param(
            *("vgg11", 32, {"features": (4,) * 5, "hidden": (8, 8)}),
            marks=pytest.mark.slow,
        ),
        pytest.param("highway19", 32, {"features": (2, 3, 4)}, marks=pytest.mark.slow),
        ("fractalnet20", 8, {"features": (4, 8), "columns": 2}),
        pytest.param("googlenet_2014", 64, {}, marks=pytest.mark.slow),
    ],
)
def test_program_is_the_network(name, side, fields, random_variables):
    model = create_model(name, num_classes=5, **fields)
    shape = (side, side, MODELS[name].channels)
    variables = random_variables(model, shape)
    preprocess = partial(data.normalize, mean=120.0, std=60.0)
    program = to_stablehlo(model, variables, shape, preprocess=preprocess)
    logits = jax.jit(from_stablehlo(program))
    apply = jax.jit(partial(model.apply, variables, train=False))
    for size in (1, 3):
        pixels = np.random.default_rng(size).integers(0, 256, (size, *shape), np.uint8)
        expected = apply(preprocess(pixels))
        np.testing.assert_allclose(logits(pixels), expected, rtol=1e-5, atol=1e-5)
    assert set(jax.export.deserialize(bytearray(program)).platforms) == {
        *("cpu", "cuda", "tpu")
    }


def test_normalised_images_without_preprocessing(random_variables):
    model = create_model("resnet20", stage_sizes=(1, 1, 1))
    variables = random_variables(model, (8, 8, 3))
    logits = from_stablehlo(to_stablehlo(model, variables, (8, 8, 3)))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    expected = model.apply(variables, images, train=False)
    np.testing.assert_allclose(logits(images), expected, rtol=1e-5, atol=1e-5)


def test_other_bytes_are_refused():
    with pytest.raises(InputError, match="not a program that jax"):
        from_stablehlo(b"not a program")
