# SPDX-License-Identifier: Apache-2.0
"""Sums of transform gates by class; tests/models/test_highway.py has a network's."""

import numpy as np

from rn_jax.analysis.highway import gate_sums


def test_gate_sums_of_each_class(x64):
    """Layers of all stages in order; a class without images has sums of 0."""
    sums = np.random.default_rng(0).uniform(size=(3, 6))
    features = {
        f"stage{i}": {"blocks": {"transform_gate_sum": (part,)}}
        for i, part in enumerate((sums[:2], sums[2:]), start=1)
    }
    labels = np.array([0, 1, 1, 0, 3, 3])
    found, counts = gate_sums({"conv1": {}, **features}, labels, 4)
    expected = [[s[labels == c].sum() for c in range(4)] for s in sums]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(counts, [2, 2, 0, 2])
