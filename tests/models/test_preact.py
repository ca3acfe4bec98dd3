# SPDX-License-Identifier: Apache-2.0
"""Every unit of He et al. 2016 by NumPy: figures 2 and 4, with gates."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from by_numpy import np_conv, np_norm

from rn_jax import InputError, create_model
from rn_jax.models import preact
from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm

SHAPE = (3, 6, 6, 8)


def relu(x):
    return np.maximum(x, 0)


class Reference:
    """The layers of one unit, by the names of its variables."""

    def __init__(self, variables, train, stride):
        self.p, self.s = variables["params"], variables["batch_stats"]
        self.train, self.stride = train, stride

    def bn(self, x, name, p=None, s=None):
        p, s = p or self.p[name], s or self.s[name]
        if self.train:
            s = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
        return np_norm(x, p, s)

    def w(self, x, i):
        return np_conv(x, self.p[f"conv{i}"], self.stride if i == 1 else 1)

    def g(self, x):
        return 1 / (1 + np.exp(-np_conv(x, self.p["gate"], self.stride)))

    def h(self, x, features):
        if "shortcut" in self.p:
            p = self.p["shortcut"]
            y = np_conv(x, p["conv"], self.stride)
            if "bn" in p:
                y = self.bn(y, None, p["bn"], self.s["shortcut"]["bn"])
            return y
        x = x[:, :: self.stride, :: self.stride]
        return np.pad(x, ((0, 0),) * 3 + ((0, features - x.shape[-1]),))

    def original(self, x):
        y = relu(self.bn(self.w(x, 1), "bn1"))
        return self.bn(self.w(y, 2), "bn2")


def constant_scaling(r, x, b, f, n):
    return relu(0.25 * r.h(x, f) + b * 0.5 * r.original(x))


def exclusive_gating(r, x, b, f, n):
    g = b * r.g(x)
    return relu((1 - g) * r.h(x, f) + g * r.original(x))


def shortcut_only_gating(r, x, b, f, n):
    return relu((1 - r.g(x)) * r.h(x, f) + b * r.original(x))


def dropout_shortcut(r, x, b, f, n):
    return relu(r.h(x, f) + b * r.original(x))


def bn_after_addition(r, x, b, f, n):
    y = x
    for i in range(1, n):
        y = relu(r.bn(r.w(y, i), f"bn{i}"))
    return relu(r.bn(r.h(x, f) + b * r.w(y, n), "bn_after"))


def relu_before_addition(r, x, b, f, n):
    y = x
    for i in range(1, n + 1):
        y = relu(r.bn(r.w(y, i), f"bn{i}"))
    return r.h(x, f) + b * y


def relu_only_preactivation(r, x, b, f, n):
    y = x
    for i in range(1, n + 1):
        y = r.bn(r.w(relu(y), i), f"bn{i}")
    return r.h(x, f) + b * y


def single_layer(r, x, b, f, n):
    return relu(r.h(x, f) + b * r.bn(r.w(x, 1), "bn1"))


def full_preactivation(r, x, b, f, n):
    if "shortcut" in r.p:  # one activation for both paths
        x = relu(r.bn(x, "bn1"))
        y = r.w(x, 1)
    else:
        y = r.w(relu(r.bn(x, "bn1")), 1)
    for i in range(2, n + 1):
        y = r.w(relu(r.bn(y, f"bn{i}")), i)
    return r.h(x, f) + b * y


TWO = {"bottleneck": False}, 2
THREE = {"bottleneck": True}, 3
UNITS = [
    (
        preact.ConstantScaling,
        constant_scaling,
        {"shortcut_scale": 0.25, "branch_scale": 0.5},
        2,
    ),
    (preact.ExclusiveGating, exclusive_gating, {}, 2),
    (preact.ShortcutOnlyGating, shortcut_only_gating, {}, 2),
    (preact.DropoutShortcut, dropout_shortcut, {"dropout": 0.0}, 2),
    (preact.BatchNormAfterAddition, bn_after_addition, *TWO),
    (preact.BatchNormAfterAddition, bn_after_addition, *THREE),
    (preact.ReluBeforeAddition, relu_before_addition, *TWO),
    (preact.ReluBeforeAddition, relu_before_addition, *THREE),
    (preact.ReluOnlyPreactivation, relu_only_preactivation, *TWO),
    (preact.ReluOnlyPreactivation, relu_only_preactivation, *THREE),
    (preact.SingleLayer, single_layer, {}, 1),
    (preact.DropoutBranch, dropout_shortcut, {"dropout": 0.0}, 2),
    (preact.ReluOnlyPreactivation, relu_only_preactivation, {"single": True}, 1),
    (preact.FullPreactivation, full_preactivation, {"single": True}, 1),
    (preact.FullPreactivation, full_preactivation, *TWO),
    (preact.FullPreactivation, full_preactivation, *THREE),
]


@pytest.mark.parametrize("unit, reference, fields, weights", UNITS)
@pytest.mark.parametrize("shortcut, features, stride", [("A", 8, 1), ("A", 16, 2)])
def test_unit_by_numpy(
    x64, unit, reference, fields, weights, shortcut, features, stride
):
    if unit is preact.FullPreactivation and stride == 2 and weights == 3:
        shortcut = "B_linear"
    elif stride == 2 and weights == 3:
        shortcut = "B"
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPE)

    def make(train):
        norm = partial(BatchNorm, use_running_average=not train)
        return unit(features, stride, shortcut, Conv, norm, nn.relu, **fields)

    single = x.astype("float32")
    shapes = jax.eval_shape(
        lambda: make(False).init(jax.random.key(0), single, train=False)
    )
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.6, leaf.shape), shapes)
    variables["params"] = jax.tree.map(
        lambda leaf: leaf - 0.35 if leaf.ndim == 4 else leaf, variables["params"]
    )
    for train in (False, True):
        run = jax.jit(
            lambda gate, train=train: make(train).apply(
                variables, x, gate, train=train, mutable=["batch_stats"]
            )[0]
        )
        r = Reference(variables, train, stride)
        for gate in (None, 0.0, 0.5, 1.0):
            b = 1 if gate is None else gate
            expected = reference(r, x, b, features, weights)
            found = run(None if gate is None else np.array(gate))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
            assert np.abs(expected).max() > 0.1


def test_dropout_is_where_the_papers_have_it(x64):
    """On the shortcut alone; and before the last weight layer of a branch."""
    x = np.abs(np.random.default_rng(0).normal(size=(64, 2, 2, 8))) + 1
    norm = partial(BatchNorm, use_running_average=True)
    parts = (8, 1, "A", Conv, norm, nn.relu)

    def init(unit):
        single = x.astype("float32")
        variables = unit.init(jax.random.key(0), single, train=False)
        return jax.tree.map(lambda leaf: leaf.astype(x.dtype), variables)

    unit = preact.DropoutShortcut(*parts, dropout=0.5)
    variables = init(unit)
    rngs = {"dropout": jax.random.key(1)}
    y = unit.apply(variables, x, np.array(0.0), train=True, rngs=rngs)
    kept = np.asarray(y) != 0
    np.testing.assert_allclose(np.asarray(y)[kept], 2 * x[kept])
    assert abs(kept.mean() - 0.5) < 0.05
    np.testing.assert_allclose(unit.apply(variables, x, np.array(0.0), train=False), x)

    wide = preact.FullPreactivation(*parts, dropout=0.5)
    variables = init(wide)
    kernel = np.zeros((3, 3, 8, 8))
    kernel[1, 1] = np.eye(8)
    for layer in ("conv1", "conv2"):
        variables["params"][layer]["kernel"] = kernel
    y = np.asarray(wide.apply(variables, x, train=True, rngs=rngs)) - x
    kept = np.abs(y) > 1e-9  # what the last weight layer was given
    assert abs(kept.mean() - 0.5) < 0.05
    np.testing.assert_allclose(y[kept], 2 * x[kept], rtol=1e-4)

    unit = preact.DropoutBranch(*parts, dropout=0.25)
    variables = init(unit)
    for layer in ("conv1", "conv2"):
        variables["params"][layer]["kernel"] = kernel
    y = np.asarray(unit.apply(variables, x, train=True, rngs=rngs)) - x
    kept = np.abs(y) > 1e-9
    assert abs(kept.mean() - 0.75) < 0.05
    np.testing.assert_allclose(y[kept], x[kept] / 0.75, rtol=1e-4)


def test_a_single_layer_is_no_bottleneck():
    fields = {"bottleneck": True, "single": True}
    unit = preact.FullPreactivation(8, 1, "A", Conv, BatchNorm, nn.relu, **fields)
    with pytest.raises(InputError, match="a bottleneck or single, not both"):
        preact.weight_layers(unit)


def test_the_gates_bias_is_a_setting():
    model = create_model("resnet110_exclusive_gating_7").copy(
        stage_sizes=(2,), features=(4,)
    )
    params = model.init(
        jax.random.key(0), np.ones((1, 4, 4, 3), "float32"), train=False
    )
    assert np.all(params["params"]["stage1"]["blocks"]["gate"]["bias"] == -7)
