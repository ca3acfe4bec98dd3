# SPDX-License-Identifier: Apache-2.0
"""Training steps to time, made by the factories that experiments use."""

from collections.abc import Callable
from functools import cached_property, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import rn_jax
from rn_jax import data, optim, parallel, train


def make_batch(batch_size: int, image_size: int) -> dict[str, np.ndarray]:
    """Return random images and labels."""
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, 3)
    return {
        "image": rng.integers(0, 256, shape, dtype=np.uint8),
        "label": rng.integers(0, 10, batch_size).astype(np.int32),
        "mask": np.ones(batch_size, bool),
    }


def make_step(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    learning_rate: float = 0.01,
    axis_name: str | None = None,
) -> tuple[Callable, Callable]:
    """Return a training step with Nesterov's momentum, and key -> its first state.

    Args:
        model: without parameters.
        image_shape: (H, W, C).
        learning_rate: constant learning rate.
        axis_name: see `train.make_train_step`.
    """
    tx = optim.sgd(
        optim.piecewise_schedule(learning_rate),
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        decay="all",
    )
    step = train.make_train_step(
        model=model,
        tx=tx,
        preprocess=lambda key, images, first: data.normalize(images, 128.0, 64.0),
        axis_name=axis_name,
    )
    create = partial(train.create_state, model=model, tx=tx, image_shape=image_shape)
    return step, create


class Step:
    """A compiled training step and its state; calling it takes one step and waits."""

    def __init__(
        self,
        model: str,
        *,
        batch_size: int,
        image_size: int,
        depth: rn_jax.StochasticDepth | None = None,
        num_devices: int | None = None,
        dtype: str = "float32",
        **model_kwargs,
    ):
        self.devices = parallel.choose_devices(num_devices, batch_size)
        axis_name = parallel.axis_name(self.devices)
        self.model = rn_jax.create_model(
            model,
            stochastic_depth=depth,
            axis_name=axis_name,
            dtype=jnp.dtype(dtype),
            **model_kwargs,
        )
        step, create_state = make_step(
            self.model, (image_size, image_size, 3), axis_name=axis_name
        )
        self.create_state = partial(create_state, jax.random.key(0))
        self.step = parallel.compile_train_step(step, self.devices)
        self.batch = make_batch(batch_size, image_size)
        self.key = jax.random.key(1)
        self.open_shares = []

    @cached_property
    def state(self) -> train.TrainState:
        """The state on all devices, created on first use."""
        return parallel.replicate(self.create_state(), self.devices)

    def __call__(self) -> None:
        """Take one step."""
        self.state, sums = self.step(self.state, self.batch, self.key)
        jax.block_until_ready(self.state)
        self.open_shares.append(float(sums["open"].mean()))
