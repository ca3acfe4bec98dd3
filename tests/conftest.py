# SPDX-License-Identifier: Apache-2.0
"""Settings of JAX for all tests, which hold from before its first use, and fixtures."""

import os
from pathlib import Path

# Before JAX is imported, and so in the processes that tests start.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Compilation dominates the test time; without most optimisations it takes half as long.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax
import numpy as np
import pytest

if not hasattr(jax, "enable_x64"):  # JAX 0.7
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64

# Enough virtual devices for the tests of parallelism.
jax.config.update("jax_num_cpu_devices", 8)
# Compiled programs are kept, so that a second run of the tests is much shorter.
jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax-tests")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def optimized():
    """Compile as for users, in tests that inspect the compiled program."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def x64():
    """Double precision for one test, where 1e-12 is asked for."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def same_in_64_bits():
    """check(compute): compute() is the same, dtypes included, where 64 are allowed."""

    def equal(path, usual, wide):
        name = jax.tree_util.keystr(path)
        assert usual.dtype == wide.dtype, name
        usual, wide = np.asarray(usual, "float64"), np.asarray(wide, "float64")
        np.testing.assert_allclose(wide, usual, rtol=1e-4, atol=1e-6, err_msg=name)

    def check(compute):
        usual = compute()
        with jax.enable_x64(True):
            jax.tree_util.tree_map_with_path(equal, usual, compute())

    return check


@pytest.fixture(scope="session")
def cifar10_dir():
    """Folder with the real CIFAR-10, or a skip."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not (Path(folder) / "cifar10").is_dir():
        pytest.skip("TFDS_DATA_DIR names no folder with the real cifar10")
    return folder


@pytest.fixture(scope="session")
def random_variables():
    """make(model, image_shape, dtype="float32", seed=0): variables, no two alike.

    Filled in by NumPy from the shapes alone: nothing is compiled, and BatchNorm has
    scales, offsets and statistics of its own, which `init` would leave at 0 and 1.
    """

    def make(model, image_shape, dtype="float32", seed=0):
        rng = np.random.default_rng(seed)

        def fill(path, leaf):
            name = path[-1].key
            if name == "kernel":  # of a size that keeps activations near 1
                values = rng.normal(size=leaf.shape) / leaf.shape[-2] ** 0.5
                values *= 0.5 if leaf.ndim > 2 else 1.0
            elif name in ("bias", "mean"):
                values = 0.2 * rng.normal(size=leaf.shape)
            else:  # scales and variances
                values = rng.uniform(0.5, 1.5, leaf.shape)
            return values.astype(dtype)

        shapes = jax.eval_shape(
            lambda: model.init(
                {"params": jax.random.key(0)},
                jax.numpy.zeros((1, *image_shape), "float32"),
                train=False,
            )
        )
        return jax.tree_util.tree_map_with_path(fill, shapes)

    return make


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, or a skip."""
    pytest.importorskip("torch", reason="PyTorch is an optional peer")
    from benchmarks.torch_peer import importable_torchvision

    with importable_torchvision():
        return pytest.importorskip("torchvision", reason="an optional peer")
