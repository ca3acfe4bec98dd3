# SPDX-License-Identifier: Apache-2.0
"""Training steps to time, made by the factories that experiments use."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import rn_jax
from configs.default import Config
from experiments.training import setup
from rn_jax import data, optim, parallel, train


def make_batch(
    batch_size: int, image_size: int, channels: int = 3
) -> dict[str, np.ndarray]:
    """Return random images and labels."""
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, channels)
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


def make_experiment(
    config: Config, devices: Sequence[jax.Device]
) -> tuple[setup.Experiment, dict[str, np.ndarray]]:
    """Make the experiment of a config with random images, and what its step takes.

    Args:
        config: its `setup.make_train_step` is the step that `experiments.run` takes.
        devices: as for `setup.assemble`.

    Returns:
        (experiment, batch). Where training images stay on the devices, the batch holds
        as many as the data set.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    spec = data.get_spec(config.dataset)
    size, number = spec.image_shape[0], spec.num_train
    if spec.crops_on_host:
        size, number = config.image_size, config.batch_size
        config = dataclasses.replace(config, data_on_device=False)
    rows = make_batch(number, size, spec.image_shape[-1])
    feed = data.InMemory(
        {"train": data.Examples(rows["image"], rows["label"])},
        batch_size=config.batch_size,
        seed=config.seed,
    )
    mean_image = np.zeros(rows["image"].shape[1:], np.float32)
    experiment = setup.assemble(config, list(devices), feed, mean_image)
    if not experiment.data_on_device:
        return experiment, next(feed.train_batches(0, 1))
    return experiment, {"order": next(feed.train_orders(0, 1)), **experiment.examples()}


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
