# SPDX-License-Identifier: Apache-2.0
"""Training steps to be timed, by the same factories that experiments use."""

from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np

import rn_jax
from rn_jax import data, optim, parallel, train


def make_batch(batch_size: int, image_size: int) -> dict[str, np.ndarray]:
    """Random images and labels."""
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, 3)
    return {
        "image": rng.integers(0, 256, shape, dtype=np.uint8),
        "label": rng.integers(0, 10, batch_size).astype(np.int32),
        "mask": np.ones(batch_size, bool),
    }


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
        tx = optim.sgd(
            optim.piecewise_schedule(0.01),
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-4,
            decay="all",
        )
        self.create_state = partial(
            train.create_state,
            jax.random.key(0),
            model=self.model,
            tx=tx,
            image_shape=(image_size, image_size, 3),
        )
        step = train.make_train_step(
            model=self.model,
            tx=tx,
            preprocess=lambda key, images, first: data.normalize(images, 128.0, 64.0),
            stochastic_depth=depth,
            axis_name=axis_name,
        )
        self.step = parallel.compile_train_step(step, self.devices)
        self.batch = make_batch(batch_size, image_size)
        self.key = jax.random.key(1)
        self.open_shares = []

    @cached_property
    def state(self) -> train.TrainState:
        """On all devices; made when it is first asked for."""
        return parallel.replicate(self.create_state(), self.devices)

    def __call__(self) -> None:
        """One step."""
        self.state, sums = self.step(self.state, self.batch, self.key)
        jax.block_until_ready(self.state)
        self.open_shares.append(float(sums["open"].mean()))
