# SPDX-License-Identifier: Apache-2.0
"""ONNX programs compute what the network does, in ONNX Runtime; `make test-onnx`."""

import sys
from functools import partial

import jax
import numpy as np
import pytest
from sizes import narrow

from rn_jax import InputError, StochasticDepth, create_model, data, list_models
from rn_jax.interop import to_onnx
from rn_jax.models import MODELS


def test_it_is_said_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(InputError, match=r"jax2onnx, which cannot be imported .*: pip"):
        to_onnx(create_model("resnet20"), {}, (8, 8, 3))


def compare(model, shape, variables, preprocess=None):
    """For batches of two sizes."""
    pytest.importorskip("jax2onnx", reason="needs the extra onnx")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    program = to_onnx(model, variables, shape, preprocess=preprocess)
    images = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    if preprocess is not None:
        images = (100 + 50 * images).clip(0, 255).astype("uint8")
    session = runtime.InferenceSession(program)
    [found] = session.run(["logits"], {"images": images})
    [first] = session.run(["logits"], {"images": images[:1]})
    np.testing.assert_allclose(first, found[:1], rtol=1e-4, atol=1e-4)
    run = jax.jit(partial(model.apply, variables, train=False))
    expected = np.asarray(run(images if preprocess is None else preprocess(images)))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert found.shape == expected.shape and error < 1e-5


def test_program_is_the_network_from_pixels_to_logits(random_variables):
    model = narrow("resnet110", stochastic_depth=StochasticDepth(0.5))
    variables = random_variables(model, (8, 8, 3))
    preprocess = partial(data.normalize, mean=120.0, std=60.0)
    compare(model, (8, 8, 3), variables, preprocess)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_network_is_exported(name, random_variables):
    model = narrow(name)
    shape = (32, 32, MODELS[name].channels)
    compare(model, shape, random_variables(model, shape))
