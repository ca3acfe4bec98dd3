# SPDX-License-Identifier: Apache-2.0
"""Residual networks of residual networks by NumPy, and against plain ResNets."""

from functools import partial

import jax
import numpy as np
import pytest
from by_numpy import np_conv, np_norm

import rn_jax
from rn_jax import InputError
from rn_jax.models.preact import FullPreactivation
from rn_jax.models.resnet import BasicBlock, ResNet
from rn_jax.models.ror import LateBasicBlock, RoR

SMALL = {"stage_sizes": (2, 2, 2), "features": (4, 6, 8), "num_classes": 3}
PREACTIVATION = {"block": FullPreactivation, "level_shortcut": "B_linear"}
WIDE = {**PREACTIVATION, "shortcut": "B_linear", "stem_features": 3}


def relu(x):
    return np.maximum(x, 0)


def np_ror(images, variables, gates, levels, original):
    """The equations of the paper, block by block; f is ReLU or the identity."""
    variables = rn_jax.unstack(variables)
    params, stats = variables["params"], variables["batch_stats"]

    def at(path):
        p, s = params, stats
        for key in path.split("/"):
            p, s = p.get(key, {}), s.get(key, {})
        return p, s

    def conv(x, path, stride=1):
        return np_conv(x, at(path)[0], stride)

    def norm(x, path):
        return np_norm(x, *at(path))

    def shortcut(x, path, features, stride):
        """A convolution where there is one, else every stride-th pixel and zeros."""
        if "conv" not in at(path)[0]:
            x = x[:, ::stride, ::stride]
            return np.pad(x, ((0, 0),) * 3 + ((0, features - x.shape[-1]),))
        y = conv(x, f"{path}/conv", stride)
        return norm(y, f"{path}/bn") if "bn" in at(path)[0] else y

    x_1 = x = relu(norm(conv(images, "stem_conv"), "stem_bn"))
    for i in range(1, 7):
        stage, place = (i + 1) // 2, 2 - i % 2
        name = f"stage{stage}/block{place:02d}"
        stride = 2 if place == 1 and stage > 1 else 1
        width = 2 + 2 * stage
        if place == 1:
            x_s = x
        if original:
            y = relu(norm(conv(x, f"{name}/conv1", stride), f"{name}/bn1"))
            y = norm(conv(y, f"{name}/conv2"), f"{name}/bn2")
        else:
            y = x if i == 1 else relu(norm(x, f"{name}/bn1"))
            if "conv" in at(f"{name}/shortcut")[0]:
                x = y
            y = relu(norm(conv(y, f"{name}/conv1", stride), f"{name}/bn2"))
            y = conv(y, f"{name}/conv2")
        y = shortcut(x, f"{name}/shortcut", width, stride) + gates[i - 1] * y
        if place == 2 and levels == 3:
            # Over the stage, whose first block has the stride.
            stride = 2 if stage > 1 else 1
            y = y + shortcut(x_s, f"stage{stage}_shortcut", width, stride)
        if i == 6 and levels > 1:
            y = y + shortcut(x_1, "root_shortcut", width, 4)
        x = relu(y) if original else y
    if not original:
        x = relu(norm(x, "final_bn"))
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize(
    ("fields", "levels"),
    [({}, 3), ({}, 2), ({"level_shortcut": "C"}, 3), (PREACTIVATION, 3), (WIDE, 3)],
)
def test_network_by_numpy(fields, levels, random_variables, x64):
    model = RoR(**SMALL, **fields, levels=levels)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    variables = random_variables(model, images.shape[1:], "float64")
    run = jax.jit(partial(model.apply, train=False))
    # Closed blocks in the middle and at the end of a stage, whose level shortcuts stay.
    for gates in ([1.0] * 6, [0.5, 1.0, 2.0, 0.0, 0.0, 1.0], [0.0] * 6):
        found = run(variables, images, gates=np.array(gates))
        expected = np_ror(images, variables, gates, levels, "block" not in fields)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_one_level_is_a_residual_network(random_variables, x64):
    """Value, statistics and gradients, with closed blocks at the end of a stage."""
    small = {"stage_sizes": (2, 1), "features": (4, 6), "num_classes": 3}
    resnet, late = ResNet(**small), RoR(**small, levels=1)
    images = np.random.default_rng(1).normal(size=(4, 4, 4, 3))
    variables = random_variables(resnet, images.shape[1:], "float64")

    def run(model, variables):
        def loss(params):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                gates=np.array([1.0, 0.0, 0.5]),
                mutable=["batch_stats"],
            )
            return (logits**2).sum(), (logits, updates)

        grads, (logits, updates) = jax.jit(jax.grad(loss, has_aux=True))(
            variables["params"]
        )
        return logits, rn_jax.unstack({"params": grads, **updates})

    # The first block of RoR is apart from its stage's loop.
    found = run(late, rn_jax.stack(rn_jax.unstack(variables), late))
    close = partial(np.testing.assert_allclose, atol=1e-10)
    jax.tree.map(close, found, run(resnet, variables))


def test_a_path_runs_through_all_blocks(random_variables):
    """Its gradient passes no level shortcut; without paths it passes them all."""
    model = RoR((1, 1), num_classes=3, features=(2, 4))
    images = np.random.default_rng(2).normal(size=(1, 4, 4, 3)).astype("float32")
    variables = random_variables(model, images.shape[1:])

    def total(params, paths):
        own = {**variables, "params": params}
        return model.apply(own, images, train=False, paths=paths).sum()

    gradient = jax.jit(jax.grad(total))
    for paths in (np.array([0, 1], "float32"), None):
        grads = gradient(variables["params"], paths)
        for name in ("root_shortcut", "stage2_shortcut"):
            for leaf in jax.tree.leaves(grads[name]):
                assert np.any(leaf) == (paths is None), name
        assert np.any(grads["stem_conv"]["kernel"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="levels must be 1, 2 or 3, not 4"):
        RoR((1, 1), features=(4, 8), levels=4)
    with pytest.raises(InputError, match="with which BasicBlock ends: use LateBasic"):
        RoR((1, 1), features=(4, 8), block=BasicBlock)
    assert RoR((1, 1), features=(4, 8)).block is LateBasicBlock
