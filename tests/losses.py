# SPDX-License-Identifier: Apache-2.0
"""A loss whose gradients tests compare."""

import jax


def in_training(model, variables, images):
    """loss(params, gates) -> (sum of squared logits, updates), with dropout."""

    def loss(params, gates):
        logits, updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            gates=gates,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return (logits**2).sum(), updates

    return loss
