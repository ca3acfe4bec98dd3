# SPDX-License-Identifier: Apache-2.0
"""The device that `make test-devices` compiles for; without one, nothing is tested."""

import jax
import pytest


def pytest_addoption(parser):
    parser.addoption("--device", help="a key of benchmarks.device_program.DEVICES")


@pytest.fixture(scope="session")
def device(request):
    name = request.config.getoption("--device", default=None)
    if name is None:
        pytest.skip("make test-devices compiles for absent devices")
    # What is compiled for an absent device cannot be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    # The counts are those of users' programs.
    jax.config.update("jax_disable_most_optimizations", False)
    return name
