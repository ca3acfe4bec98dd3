# SPDX-License-Identifier: Apache-2.0
"""Where the layers of a highway network carry their input, and where they change it."""

import jax
import jax.numpy as jnp


def gate_sums(
    features, labels: jax.Array, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Sums of the transform gates of every layer, by class (Srivastava et al. 2015).

    Both results add up over batches; their quotient is the mean sum of a class.

    Args:
        features: the collection "intermediates", as
            `model.apply(variables, images, train=False, mutable=["intermediates"])`
            gives it for a highway network.
        labels: i32[B], classes of those images.
        num_classes: K.

    Returns:
        f32[L, K]: T(x) summed over a layer's units and pixels and over the images of a
        class; 0 is a layer that only carries. f32[K]: images of each class.
    """
    stages = sorted(name for name in features if name.startswith("stage"))
    sums = jnp.concatenate(
        [features[name]["blocks"]["transform_gate_sum"][0] for name in stages]
    )  # f[L, B]
    members = jax.nn.one_hot(labels, num_classes, dtype=sums.dtype)  # f[B, K]
    return sums @ members, members.sum(axis=0)
