# SPDX-License-Identifier: Apache-2.0
"""Weights for colour images on greyscale ones and back: the same features."""

from functools import partial

import jax
import numpy as np
import pytest
from sizes import FAMILIES, narrow

from rn_jax import InputError, create_model, with_channels
from rn_jax.models.channels import kernel_for_channels
from rn_jax.models.highway import HighwayMLP

NARROW = [
    *("resnet20", "densenet40_12", "vgg11"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("wrn28_10", "highway19", "plain20")
    ),
]


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("before, after", [(3, 1), (1, 3), (1, 4)])
def test_an_image_with_equal_channels_has_the_same_logits(
    random_variables, name, before, after
):
    model = narrow(name)
    grey = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype("float32")
    variables = random_variables(model, (16, 16, before))
    run = jax.jit(partial(model.apply, train=False))
    adapted = with_channels(model, variables, after)
    np.testing.assert_allclose(
        run(adapted, grey.repeat(after, -1)),
        run(variables, grey.repeat(before, -1)),
        *(1e-4, 1e-5),
    )


@pytest.mark.parametrize("name", FAMILIES.values(), ids=str)
def test_only_the_first_kernel_of_a_network_changes(name):
    if FAMILIES.get(HighwayMLP) == name:
        with pytest.raises(InputError, match="MLP does not begin with a convolution"):
            with_channels(create_model(name), {"params": {}}, 1)
        return
    model = narrow(name)
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), "float32")
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda x: model.init(key, x, train=False), image)
    variables = jax.tree.map(lambda s: np.broadcast_to(np.float32(1), s.shape), shapes)
    adapted = with_channels(model, variables, 1)
    other = jax.tree.map(lambda a, b: a is not b, variables, adapted)
    kernels = [
        leaf
        for leaf, differs in zip(
            jax.tree.leaves(adapted), jax.tree.leaves(other), strict=True
        )
        if differs
    ]
    assert len(kernels) == getattr(model, "columns", 1)
    assert all(kernel.shape[2] == 1 and np.all(kernel == 3) for kernel in kernels)


def test_the_sum_over_channels():
    kernel = np.arange(24, dtype="float32").reshape(2, 2, 3, 2)
    np.testing.assert_array_equal(kernel_for_channels(kernel, 1)[0, 0, 0], [6, 9])
    assert kernel_for_channels(kernel, 3) is kernel
    with pytest.raises(InputError, match="3 channels cannot be adapted to 4: name wei"):
        kernel_for_channels(kernel, 4)
