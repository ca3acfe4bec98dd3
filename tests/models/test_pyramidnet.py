# SPDX-License-Identifier: Apache-2.0
"""PyramidNets by NumPy, and the widths and sizes of the paper."""

from functools import partial

import jax
import numpy as np
import pytest
from by_numpy import np_conv, np_norm

import rn_jax
from rn_jax import InputError, create_model
from rn_jax.models import MODELS
from rn_jax.models.pyramidnet import PyramidNet


def np_pyramidnet(images, variables, gates):
    """Two stages; BN-W-BN-ReLU-W-BN beside averages of 2x2 and zero channels."""
    params, stats = variables["params"], variables["batch_stats"]

    def norm(x, *path):
        p, s = params, stats
        for key in path:
            p, s = p[key], s[key]
        return np_norm(x, p, s)

    x = norm(np_conv(images, params["stem_conv"]), "stem_bn")
    gates = iter(gates)
    for stage in ("stage1", "stage2"):
        for layer in sorted(params[stage]):
            unit = params[stage][layer]
            convs = sorted(key for key in unit if key.startswith("conv"))
            halved = stage == "stage2" and layer == "layer01"
            y = norm(x, stage, layer, "bn1")
            for i, conv in enumerate(convs, 1):
                strided = halved and unit[conv]["kernel"].shape[0] == 3
                strided = strided and i == (2 if len(convs) == 3 else 1)
                y = np_conv(y, unit[conv], 2 if strided else 1)
                y = norm(y, stage, layer, f"bn{i + 1}")
                y = y if i == len(convs) else np.maximum(y, 0)
            if halved:
                b, h, w, c = x.shape
                x = x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
            x = np.pad(x, ((0, 0),) * 3 + ((0, y.shape[-1] - x.shape[-1]),))
            x = x + next(gates) * y
    x = np.maximum(norm(x, "final_bn"), 0).mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_network_by_numpy(bottleneck, random_variables):
    fields = {"alpha": 3.0, "bottleneck": bottleneck, "stem_features": 4}
    model = PyramidNet((2, 2), num_classes=3, **fields)
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    variables = random_variables(model, images.shape[1:], "float64")
    gates = np.array([0.5, 1.0, 2.0, 1.0])
    with jax.enable_x64(True):
        logits = jax.jit(partial(model.apply, train=False))(
            variables, images, gates=gates
        )
    expected = np_pyramidnet(images, variables, gates)
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9)


def test_widths_are_those_of_the_equations():
    additive = PyramidNet((2, 2), alpha=6)
    assert additive.features == (17, 19, 20, 22)  # 17.5, 19, 20.5, 22
    multiplicative = PyramidNet((2, 1), alpha=8, widening="multiplicative")
    assert multiplicative.features == (32, 64, 128)  # by cube roots of 8
    assert PyramidNet((1,), alpha=2, bottleneck=True).features == (72,)
    same = [b.same_shape for b in PyramidNet((3, 3), alpha=3).blocks]
    # 16, 17 and 17 channels; 18, 18 and 19, the first of them with a stride
    assert same == [True, False, True, False, True, False]


# The widths after the last unit and millions of parameters, from the README of the
# authors' code. Its parameters are less exact for the widest networks.
PUBLISHED = {
    "pyramidnet110_mul4_75": (76, 1.7),
    "pyramidnet110_48": (64, 1.7),
    "pyramidnet110_mul8": (128, 3.8),
    "pyramidnet110_84": (100, 3.8),
    "pyramidnet110_mul27": (432, 28.3),
    "pyramidnet110_270": (286, 28.3),
    "pyramidnet164_48": (256, 1.7),
    "pyramidnet164_84": (400, 3.8),
    "pyramidnet164_270": (1144, 27.0),
    "pyramidnet200_240": (1024, 26.6),
    "pyramidnet236_220": (944, 26.8),
    "pyramidnet272_200": (864, 26.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_last_width_and_size_are_those_published(name):
    width, millions = PUBLISHED[name]
    assert create_model(name).features[-1] == width
    assert MODELS[name].params / 1e6 == pytest.approx(millions, rel=0.03)


def test_floored_widths_give_the_sizes_published_for_the_deepest():
    for name in ("pyramidnet200_240", "pyramidnet236_220", "pyramidnet272_200"):
        millions = MODELS[name].params / 1e6
        assert millions == pytest.approx(PUBLISHED[name][1], abs=0.05), name


@pytest.mark.parametrize("alpha", [0.5, np.nan, np.inf, "48", None])
def test_alpha_that_does_not_widen_is_refused(alpha):
    with pytest.raises(InputError, match="alpha must be a number of at least 1"):
        PyramidNet((1,), alpha=alpha)


def test_gradient_follows_one_path(random_variables):
    """Zeroed gates and paths reach the units of every stage."""
    model = PyramidNet((1, 1), num_classes=2, alpha=2, stem_features=2)
    images = np.random.default_rng(1).normal(size=(1, 4, 4, 3)).astype("float32")
    variables = random_variables(model, images.shape[1:])

    def total(params, paths):
        own = {**variables, "params": params}
        return model.apply(own, images, train=False, paths=paths).sum()

    grads = jax.jit(jax.grad(total))(
        variables["params"], np.array([0.0, 1.0], "float32")
    )
    assert not any(map(np.any, jax.tree.leaves(grads["stage1"])))
    assert any(map(np.any, jax.tree.leaves(grads["stage2"])))
    assert rn_jax.stack(rn_jax.unstack(variables), model).keys() == variables.keys()
