# SPDX-License-Identifier: Apache-2.0
"""How much the layers of a highway network carry of their input."""

import jax
import jax.numpy as jnp


def gate_sums(
    features, labels: jax.Array, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Sum the transform gates of every layer by class (Srivastava et al. 2015).

    Both results add up over batches; their quotient is the mean of a class.

    Args:
        features: collection "intermediates" of a highway network, as returned by
            `model.apply(variables, images, train=False, mutable=["intermediates"])`.
        labels: i32[B], classes of the images.
        num_classes: K.

    Returns:
        (f32[L, K], T(x) summed over a layer's units and pixels and a class's images, 0
        if a layer only carries; f32[K], number of images of each class).
    """
    stages = sorted(name for name in features if name.startswith("stage"))
    sums = jnp.concatenate(
        [features[name]["blocks"]["transform_gate_sum"][0] for name in stages]
    )  # f[L, B]
    members = jax.nn.one_hot(labels, num_classes, dtype=sums.dtype)  # f[B, K]
    return sums @ members, members.sum(axis=0)
