# SPDX-License-Identifier: Apache-2.0
"""Pooling at every size of an image, and the variances of initial kernels."""

from functools import partial

import jax
import numpy as np
import pytest

from rn_jax.models.layers import (
    KERNEL_INITS,
    adaptive_average_pool,
    average_pool,
    max_pool,
)

# Window, stride, padding and ceil_mode: those of the networks, and some where Torch
# leaves out a last window that would begin past the image.
MAX = [
    *((3, 2, 1, False), (3, 2, 0, True), (2, 2, 0, True), (3, 2, 0, False)),
    *((2, 2, 0, False), (3, 1, 1, False)),
    *((1, 2, 0, True), (2, 3, 0, True), (2, 3, 1, True), (3, 2, 1, True)),
]
AVERAGE = [
    *((2, 2, 0, False), (5, 3, 0, False), (2, 2, 0, True)),
    *((1, 2, 0, True), (2, 3, 0, True), (3, 2, 0, True)),
]
CASES = [("max", *case) for case in MAX] + [("average", *case) for case in AVERAGE]


def ours(kind, size, stride, padding, ceil_mode):
    if kind == "max":
        return partial(
            max_pool, size=size, stride=stride, padding=padding, ceil_mode=ceil_mode
        )
    return partial(average_pool, size=size, stride=stride, ceil_mode=ceil_mode)


def theirs(kind, size, stride, padding, ceil_mode):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional peer")
    pool = {"max": torch.nn.MaxPool2d, "average": torch.nn.AvgPool2d}[kind]
    return pool(size, stride, padding, ceil_mode=ceil_mode)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_are_those_of_torch(case):
    """For all sizes from 1 to 64; 1 where Torch refuses an image below the window."""
    run, peer = ours(*case), theirs(*case)
    torch = pytest.importorskip("torch")
    expected, refused = {}, []
    for n in range(1, 65):
        try:
            (expected[n],) = peer(torch.zeros(1, 1, n, 64)).shape[2:3]
        except RuntimeError:
            refused.append(n)
            expected[n] = 1
    assert all(n < case[1] for n in refused)
    for n in range(1, 33):
        shape = jax.eval_shape(run, np.zeros((1, n, 65 - n, 1), "float32")).shape
        assert shape == (1, expected[n], expected[65 - n], 1), n


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_are_those_of_torch(case):
    run, peer = ours(*case), theirs(*case)
    torch = pytest.importorskip("torch")
    for shape in ((5, 8), (31, 6)):
        x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype("float32")
        expected = peer(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
        expected = expected.transpose(0, 2, 3, 1)
        np.testing.assert_allclose(run(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [3, 4, 6, 7])  # of AlexNet, auxiliary heads and VGG
def test_adaptive_shapes_and_values_are_those_of_torch(size):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional peer")
    run = partial(adaptive_average_pool, size=size)
    peer = torch.nn.AdaptiveAvgPool2d(size)
    for n in range(1, 33):
        x = np.zeros((1, n, 65 - n, 1), "float32")
        assert jax.eval_shape(run, x).shape == (1, size, size, 1)
    for shape in ((1, 2), (5, 8), (31, 9)):
        x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype("float32")
        expected = peer(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
        expected = expected.transpose(0, 2, 3, 1)
        np.testing.assert_allclose(run(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 5), (7, 6)])
@pytest.mark.parametrize("size, stride", [(2, 2), (5, 3), (3, 2)])
def test_means_by_loops(size, stride, shape, ceil_mode):
    """Also of images smaller than the window, which are averaged as a whole."""
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype("float32")

    def windows(n):
        k = min(size, n)
        # With ceil_mode one more begins where the last whole one leaves pixels over.
        return [
            slice(i, i + k)
            for i in range(0, n, stride)
            if i + k <= n or (ceil_mode and i - stride + k < n)
        ]

    rows, columns = (windows(n) for n in shape)
    expected = np.array([[x[:, r, c].mean((1, 2)) for c in columns] for r in rows])
    found = average_pool(x, size, stride, ceil_mode=ceil_mode)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1, 3), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_means_of_half_precision_are_summed_in_float32(dtype):
    """25 numbers near 4096 have a sum that float16 cannot hold."""
    x = 4096 + 16 * np.arange(25).reshape(1, 5, 5, 1)
    found = average_pool(jax.numpy.asarray(x, dtype), 5, 3)
    assert found.dtype == dtype
    expected = np.asarray(jax.numpy.asarray(x, dtype), "float64").mean()
    np.testing.assert_array_equal(found, jax.numpy.asarray(expected, dtype))


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("he_normal", 2 / (9 * 64)),
        ("xavier_normal", 2 / (9 * 64 + 9 * 32)),
        ("small_normal", 1e-4),
    ],
)
def test_variances_of_initial_kernels(name, variance):
    """Of a 3x3 convolution from 64 to 32 channels."""
    kernel = KERNEL_INITS[name](jax.random.key(0), (3, 3, 64, 32))
    assert np.var(kernel) == pytest.approx(variance, rel=0.05)
    assert abs(np.mean(kernel)) < 0.05 * variance**0.5
