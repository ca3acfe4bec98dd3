# SPDX-License-Identifier: Apache-2.0
"""From a config to what a run needs: data, network, optimiser, compiled steps."""

import contextlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from configs.default import Config
from experiments.config import check_config
from experiments.training import feed as feeds
from experiments.training.evaluation import EvalSteps, make_eval_steps
from experiments.training.network import make_model, make_network
from experiments.training.schedule import count_steps, make_feedback, make_schedule
from rn_jax import data, filesystem, optim, parallel, train
from rn_jax.data.batches import Batch
from rn_jax.errors import InputError
from rn_jax.models.network import Network

# Largest number of bytes of training images that are kept in the memory of each
# accelerator: enough for all 604,388 images of SVHN.
MOST_ON_DEVICE = 2 * 2**30


@dataclass(frozen=True)
class Experiment:
    """A config made concrete. What depends on other fields is derived here, once.

    Attributes:
        model: without parameters; the state has them.
        image_shape: (H, W, C) of the training images.
        feed: of batches; it has a part "val" if examples are held out.
        normalization: of the images; None if each image has its own.
        preprocess: pixels to normalised images.
        gates_from_step: number of steps before stochastic depth begins.
        schedule: learning rate by step, which the factor of `feedback` multiplies.
        loss_scaling: for float16, else None.
    """

    config: Config
    devices: list[jax.Device]
    model: Network
    image_shape: tuple[int, int, int]
    feed: data.Feed
    normalization: data.Normalization | None
    preprocess: Callable
    steps_per_epoch: int
    total_steps: int
    gates_from_step: int
    schedule: Callable
    feedback: optim.RateController
    tx: optax.GradientTransformation
    loss_scaling: optim.LossScaling | None

    @property
    def spec(self) -> data.DatasetSpec:
        """What is known about the data set."""
        return data.get_spec(self.config.dataset)

    @property
    def data_on_device(self) -> bool:
        """Whether batches are gathered from training images that a device has."""
        if not isinstance(self.feed, data.InMemory):
            return False
        if self.config.data_on_device is not None:
            return self.config.data_on_device
        accelerated = self.devices[0].platform != "cpu"
        return accelerated and self.feed.parts["train"].images.nbytes <= MOST_ON_DEVICE

    def examples(self) -> dict[str, np.ndarray]:
        """Return the training examples that stay on the devices, if there are any.

        These are "images" uint8[N, H * W * C] and "labels" i32[N], for
        `train.from_examples`.
        """
        if not self.data_on_device:
            return {}
        train = self.feed.parts["train"]
        return {"images": train.images.reshape(len(train), -1), "labels": train.labels}

    @property
    def eval_batch_size(self) -> int:
        """The config's, rounded up to a multiple of the devices."""
        count = len(self.devices)
        return math.ceil(self.config.eval_batch_size / count) * count

    @property
    def statistics_batches(self) -> int:
        """Training batches over which BatchNorm's exact statistics are taken."""
        number = self.config.batch_norm_examples // self.config.batch_size
        return max(1, min(number, self.steps_per_epoch))

    @property
    def mean_image(self) -> np.ndarray | None:
        """The mean image of a sample of ImageNet, which is kept with the run."""
        if self.normalization is None or not self.spec.crops_on_host:
            return None
        mean = np.asarray(self.normalization.mean)
        return mean if mean.ndim == 3 else None

    def create_state(self, key: jax.Array) -> train.TrainState:
        """Create the state before the first step, with parameters drawn by a key."""
        return train.create_state(
            key,
            model=self.model,
            tx=self.tx,
            image_shape=self.image_shape,
            feedback=self.feedback,
            loss_scaling=self.loss_scaling,
            ema_decay=self.config.ema_decay,
        )


@dataclass(frozen=True)
class Trainer(Experiment):
    """An experiment with its first state and its compiled steps.

    Attributes:
        params: number of parameters.
        initial_state: before the first step, on all devices.
        replicate: a tree of arrays -> the same on all devices.
        key: of all randomness in the training step.
        train_step: (state, batch, key) -> (state, metrics), compiled.
        placed: `examples()` on all devices.
        test: evaluation by the test rule of stochastic depth.
        constant_test: evaluation before stochastic depth begins.
    """

    params: int
    initial_state: train.TrainState
    replicate: Callable
    key: jax.Array
    train_step: Callable
    placed: dict[str, jax.Array]
    test: EvalSteps
    constant_test: EvalSteps

    def batches(self, first_step: int, last_step: int) -> Generator[Batch]:
        """Yield what `train_step` takes as the batch of each step.

        It is either this host's rows, or the order of the epoch together with the
        examples on the devices.
        """
        feed, mode = self.feed, self.config.parallelism
        if isinstance(feed, data.InMemory) and self.placed:
            last = None
            for order in feed.train_orders(first_step, last_step):
                if order is not last:  # another epoch
                    last = order
                    given = parallel.place({"order": order}, self.devices, mode=mode)
                yield {**given, **self.placed}
            return
        with contextlib.closing(feed.train_batches(first_step, last_step)) as batches:
            yield from batches

    def eval_steps(self, step: int) -> EvalSteps:
        """Return the steps that evaluate the network after `step` steps."""
        return self.test if step > self.gates_from_step else self.constant_test


def check(config: Config) -> None:
    """Check a config as `build` does, without data or devices.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    check_config(config)
    make_model(config)


def prepare(config: Config, mean_image: np.ndarray | None = None) -> Experiment:
    """Open the data of a config, and make its network and its optimiser.

    Args:
        config: the run's.
        mean_image: the mean image of ImageNet that is kept with the run; None: it is
            computed, if the config asks for one.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    check(config)
    devices = choose_devices(config)
    use_compilation_cache(config.compilation_cache)
    feed = feeds.make_feed(
        config, host_index=jax.process_index(), num_hosts=jax.process_count()
    )
    return assemble(config, devices, feed, mean_image)


def assemble(
    config: Config,
    devices: list[jax.Device],
    feed: data.Feed,
    mean_image: np.ndarray | None = None,
) -> Experiment:
    """Make the network and the optimiser of a config, for these devices and this feed.

    Args:
        config, mean_image: as for `prepare`.
        devices: to train on. They may be descriptions of devices that are not there, to
            compile for.
        feed: of the config's data set.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    axis_name = parallel.batch_norm_axis(devices, config.batch_norm)
    model, image_shape = make_network(config, axis_name)
    steps_per_epoch = data.steps_per_epoch(feed.num_train, config.batch_size)
    total_steps = count_steps(config, steps_per_epoch)
    gates_from_step = config.stochastic_depth_from_epoch * steps_per_epoch
    schedule = make_schedule(config, steps_per_epoch, total_steps)

    normalization = _normalization(config, feed, mean_image)
    preprocess = data.contrast_normalize
    if normalization is not None:
        mean, std = normalization.mean, normalization.std
        preprocess = partial(data.normalize, mean=mean, std=std)
    return Experiment(
        config=config,
        devices=devices,
        model=model,
        image_shape=image_shape,
        feed=feed,
        normalization=normalization,
        preprocess=preprocess,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        gates_from_step=min(gates_from_step, total_steps),  # later has no effect
        schedule=schedule,
        feedback=make_feedback(config),
        tx=_optimizer(config, schedule),
        loss_scaling=optim.LossScaling() if config.dtype == "float16" else None,
    )


def _optimizer(config, schedule):
    decay: dict[str, Any] = {
        "weight_decay": config.weight_decay,
        "decay": config.weight_decay_on,
        "bias_rate": config.bias_rate,
    }
    if config.optimizer == "adamw":
        tx = optim.adamw(
            schedule,
            beta1=config.momentum,
            beta2=config.adam_beta2,
            epsilon=config.adam_epsilon,
            **decay,
        )
    else:
        by_layer = config.optimizer == "lars"
        tx = optim.sgd(
            schedule,
            momentum=config.momentum,
            momentum_form=config.momentum_form,
            nesterov=config.nesterov,
            trust_coefficient=config.trust_coefficient if by_layer else None,
            **decay,
        )
    return tx if config.clip_norm is None else optim.clipped(tx, config.clip_norm)


def build(config: Config, mean_image: np.ndarray | None = None) -> Trainer:
    """Make everything that a run needs; arguments and errors are those of `prepare`."""
    experiment = prepare(config, mean_image)
    devices, mode = experiment.devices, config.parallelism
    model, preprocess = experiment.model, experiment.preprocess
    params_key, steps_key = jax.random.split(jax.random.key(config.seed))
    state = experiment.create_state(params_key)
    constant = model.clone(stochastic_depth=None)
    replicate = partial(parallel.replicate, devices=devices, mode=mode)
    return Trainer(
        **vars(experiment),
        params=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        initial_state=replicate(state),
        replicate=replicate,
        key=replicate(steps_key),
        train_step=make_train_step(experiment),
        placed=replicate(experiment.examples()),
        test=make_eval_steps(model, preprocess, devices, mode),
        constant_test=make_eval_steps(constant, preprocess, devices, mode),
    )


def make_train_step(experiment: Experiment) -> Callable:
    """Make the compiled training step: (state, batch, key) -> (state, metrics)."""
    config, devices = experiment.config, experiment.devices
    step = train.make_train_step(
        model=experiment.model,
        tx=experiment.tx,
        preprocess=_augmentation(experiment),
        gates_from_step=experiment.gates_from_step,
        aux_loss_weight=config.aux_loss_weight,
        label_smoothing=config.label_smoothing,
        mix=_mixing(config),
        feedback=experiment.feedback,
        loss_scaling=experiment.loss_scaling,
        ema_decay=config.ema_decay,
        micro_batches=config.micro_batches,
        axis_name=parallel.axis_name(devices),
    )
    if experiment.data_on_device:
        step = train.from_examples(step, experiment.image_shape)
    return parallel.compile_train_step(
        step,
        devices,
        mode=config.parallelism,
        from_examples=experiment.data_on_device,
        compiler_options=None if config.cuda_graphs else {},
    )


def choose_devices(config: Config) -> list[jax.Device]:
    """Choose the devices that a run computes on.

    Raises:
        InputError: fewer devices are available, or they and micro_batches do not
            divide the batch.
    """
    devices = parallel.choose_devices(config.num_devices, config.batch_size)
    share = config.batch_size // len(devices)
    if share % config.micro_batches:
        raise InputError(
            f"micro_batches {config.micro_batches} do not divide the {share} "
            "examples of each device."
        )
    return devices


def _normalization(config, feed, mean_image):
    kind = config.normalization
    if kind == "contrast":
        return None
    if not data.get_spec(config.dataset).crops_on_host or kind != "mean_image":
        return data.normalization(feed.parts["train"], kind)
    if mean_image is None:
        if parallel.is_first_process():
            number = min(config.mean_image_examples, feed.num_train)
            print(f"Computing the mean image of {number:,} training images, once.")
        mean_image = feeds.mean_image(feed, config)
    return data.Normalization(mean_image, np.float32(1))


def _augmentation(experiment: Experiment) -> Callable[..., jax.Array]:
    """Return the function from pixels to normalised and augmented images."""
    config, preprocess = experiment.config, experiment.preprocess
    if not config.augment:
        return lambda key, images, first_index: preprocess(images)
    spec = experiment.spec
    jitter, pca_std = config.color_jitter, config.pca_noise
    pad, flip = config.augment_pad, config.augment_flip
    pad = spec.pad if pad is None else pad
    flip = spec.flip if flip is None else flip
    if spec.crops_on_host:
        pad, flip = 0, False

    def augment(key, images, first_index):
        if jitter or pca_std:
            key, color_key = jax.random.split(key)
            images = data.augment_color(
                color_key,
                images,
                jitter=jitter,
                pca_std=pca_std,
                first_index=first_index,
            )
        return data.augment(
            key, preprocess(images), pad=pad, flip=flip, first_index=first_index
        )

    return augment


def _mixing(config):
    if not config.augment or not (config.mixup_alpha or config.cutmix_alpha):
        return None
    return partial(
        data.mix,
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        probability=config.mix_probability,
    )


def use_compilation_cache(folder: str) -> None:
    """Use a folder as JAX's cache of programs of any compile time; "" uses none."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", filesystem.expanded(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
