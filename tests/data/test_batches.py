# SPDX-License-Identifier: Apache-2.0
"""The order of examples over the steps."""

import numpy as np

from rn_jax import data


def test_epoch_permutation_is_a_permutation_of_seed_and_epoch():
    order = data.epoch_permutation(1000, seed=0, epoch=5)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    # (seed, epoch) = (0, 5) and (5, 0) are different streams.
    for seed, epoch in [(5, 0), (1, 5), (0, 4)]:
        other = data.epoch_permutation(1000, seed=seed, epoch=epoch)
        assert not np.array_equal(order, other)
