# SPDX-License-Identifier: Apache-2.0
"""scikit-learn's digits."""

import numpy as np

from rn_jax import data


def test_digits_are_scikit_learns_scans():
    from sklearn.datasets import load_digits

    dataset = data.load("digits")
    assert dataset.train.images.shape == (1437, 8, 8, 1)
    assert dataset.test.images.shape == (360, 8, 8, 1)

    def rows(pixels, labels):
        return sorted(map(tuple, np.c_[pixels, labels].tolist()))

    scans = load_digits()
    ours = [
        np.c_[part.images.reshape(len(part), 64), part.labels]
        for part in (dataset.train, dataset.test)
    ]
    # Every scan once, in one part or the other.
    back = np.concatenate(ours)
    back[:, :64] = np.round(back[:, :64] / 255 * 16)
    assert rows(back[:, :64], back[:, 64]) == rows(scans.data, scans.target)
    assert dataset.train.images.max() == dataset.test.images.max() == 255
    # A fifth of every class, to within one scan.
    of_class = np.bincount(scans.target)
    np.testing.assert_allclose(np.bincount(dataset.test.labels), of_class / 5, atol=1)
