# SPDX-License-Identifier: Apache-2.0
"""Where the layers of a highway network carry their input, and where they change it."""

import jax
import jax.numpy as jnp


def gate_sums(features, labels: jax.Array, num_classes: int) -> jax.Array:
    """Sums of the transform gates of every layer, by class (Srivastava et al. 2015).

    Args:
        features: the collection "intermediates", as
            `model.apply(variables, images, train=False, mutable=["intermediates"])`
            gives it for a highway network.
        labels: i32[B], classes of those images.
        num_classes: K.

    Returns:
        f[L, K]: T(x) summed over a layer's units and pixels, mean over the images of a
        class. 0 is a layer that only carries; NaN stands where a class has no image.
    """
    stages = [features[f"stage{i}"]["blocks"] for i in range(1, len(features) + 1)]
    gates = [stage["transform_gate"][0] for stage in stages]  # f[n, B, ...]
    sums = jnp.concatenate([g.reshape(*g.shape[:2], -1).sum(axis=2) for g in gates])
    members = jax.nn.one_hot(labels, num_classes, dtype=sums.dtype)  # f[B, K]
    return sums @ members / members.sum(axis=0)
