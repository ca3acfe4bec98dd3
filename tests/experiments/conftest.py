# SPDX-License-Identifier: Apache-2.0
"""The small network that the command trains here, in the table for these tests only."""

import pytest
from tiny import TINY

from rn_jax.models import MODELS


@pytest.fixture(autouse=True)
def tiny_in_the_table(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TINY)
