# SPDX-License-Identifier: Apache-2.0
"""The 1,797 scanned digits that come with scikit-learn."""

import numpy as np

from rn_jax.errors import package_needed

_NUM_TEST = 360


def read() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the training and the test part: uint8[N, 8, 8, 1] and int32[N] of each.

    They have 1,437 and 360 examples. The split is fixed and stratified: each class is
    shuffled and its share goes to the test part. The shuffle uses RandomState, the one
    generator whose stream NumPy promises never to change.

    Raises:
        InputError: scikit-learn cannot be imported.
    """
    with package_needed("digits comes with scikit-learn", '"rn_jax[train]"'):
        from sklearn.datasets import load_digits
    scans = load_digits()
    images = np.round(scans.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = scans.target.astype(np.int32)
    order = np.random.RandomState(0).permutation(len(labels))
    # An example's position within its shuffled class, in 0..1: the 360 lowest contain
    # the same share of every class.
    position = np.empty(len(labels))
    for label in range(10):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    ranked = np.argsort(position, kind="stable")
    parts = np.sort(ranked[_NUM_TEST:]), np.sort(ranked[:_NUM_TEST])
    return [(images[part], labels[part]) for part in parts]
