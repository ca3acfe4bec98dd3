# SPDX-License-Identifier: Apache-2.0
"""Norms of the branches' weights, by hand."""

import numpy as np
import pytest

from rn_jax import unstack
from rn_jax.analysis.branches import weight_norms
from rn_jax.models.densenet import DenseNet
from rn_jax.models.resnet import PlainLayer, ResNet

IMAGE = (8, 8, 3)


@pytest.mark.parametrize("layout", [lambda v: v, unstack])
def test_norms_without_shortcuts_stem_and_head(random_variables, layout):
    model = ResNet((2, 1), num_classes=3, features=(4, 8), shortcut="B")
    variables = random_variables(model, IMAGE)
    found = weight_norms(layout(variables)["params"], model)
    first, last = variables["params"]["stage1"], variables["params"]["stage2"]
    blocks = [{k: v for k, v in first["blocks"].items()}] * 2 + [last["first"]]
    for kind, layer in (("kernel", "conv"), ("scale", "bn")):
        leaves = [[block[f"{layer}{i}"][kind] for i in (1, 2)] for block in blocks]
        leaves[0], leaves[1] = [x[0] for x in leaves[0]], [x[1] for x in leaves[1]]
        whole = [np.concatenate([x.ravel() for x in each]) for each in leaves]
        expected = [np.linalg.norm(each) for each in whole]
        np.testing.assert_allclose(found[kind], expected, rtol=1e-6)
        assert len(set(found[kind])) == 3


@pytest.mark.parametrize(
    "model",
    [
        ResNet((2, 1), num_classes=3, features=(4, 8), block=PlainLayer),
        DenseNet((2,), num_classes=3, growth_rate=4),
    ],
    ids=["plain", "DenseNet"],
)
def test_layers_of_other_networks(random_variables, model):
    """Twice the kernels have twice the norm; the scales stay."""
    params = random_variables(model, IMAGE)["params"]

    def doubled(tree):
        return {
            name: doubled(leaf)
            if isinstance(leaf, dict)
            else leaf * (2 if name == "kernel" else 1)
            for name, leaf in tree.items()
        }

    before, after = weight_norms(params, model), weight_norms(doubled(params), model)
    np.testing.assert_allclose(after["kernel"], 2 * before["kernel"])
    np.testing.assert_array_equal(after["scale"], before["scale"])
    assert before["kernel"].min() > 0 < before["scale"].min()
