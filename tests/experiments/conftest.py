# SPDX-License-Identifier: Apache-2.0
"""The small network that the command trains here, in the table for these tests only."""

import pytest
from driver import train_tiny
from tiny import TINY

from rn_jax.models import MODELS


@pytest.fixture(autouse=True)
def tiny_in_the_table(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TINY)


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_compile_module):
    """The folder of a finished run of four blocks with stochastic depth."""
    path = tmp_path_factory.mktemp("run") / "tiny_sd"
    train_tiny(str(path))
    return path
