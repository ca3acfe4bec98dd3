# SPDX-License-Identifier: Apache-2.0
"""From a config to what a run needs: data, network, optimiser, compiled steps."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rn_jax
from configs.default import Config
from experiments.config import check_config, dataset_spec
from experiments.training import feed as feeds
from rn_jax import data, filesystem, optim, parallel, train
from rn_jax.data import imagenet
from rn_jax.errors import InputError, first_line, shown
from rn_jax.models.network import Network


class TestSteps(NamedTuple):
    """The compiled steps of a test.

    Attributes:
        evaluate: (variables, batch) -> sums.
        statistics: (variables, batch, number) -> batch_stats, see
            `train.make_statistics_step`.
    """

    evaluate: Callable
    statistics: Callable


@dataclass(frozen=True)
class Experiment:
    """A config made concrete. What depends on other fields is derived here, once.

    Attributes:
        config: of the run.
        model: without parameters; the state has them.
        params: number of parameters.
        image_shape: (H, W, C) of the images trained on.
        feed: of batches; it has a part "val" if examples are held out.
        steps_per_epoch, total_steps: of the training part.
        schedule: learning rate by step, but for the feedback's factor.
        feedback: of training on the learning rate.
        initial_state: before the first step, on all devices.
        replicate: a tree of arrays -> the same on all devices.
        gates_from_step: steps before stochastic depth begins.
        train_step: (state, batch, key) -> (state, metrics), compiled.
        test: of the network, by the test rule.
        constant_test: of constant depth, for the steps before stochastic depth begins.
        normalization: of the images; None where each has its own.
        preprocess: pixels to normalised images.
        key: of all randomness in the training step.
    """

    config: Config
    devices: list[jax.Device]
    model: Network
    params: int
    stochastic_depth: rn_jax.StochasticDepth | None
    image_shape: tuple[int, int, int]
    feed: data.Feed
    steps_per_epoch: int
    total_steps: int
    schedule: Callable
    feedback: optim.RateController
    initial_state: train.TrainState
    replicate: Callable
    gates_from_step: int
    train_step: Callable
    test: TestSteps
    constant_test: TestSteps
    normalization: data.Normalization | None
    preprocess: Callable
    key: jax.Array

    @property
    def mean_image(self) -> np.ndarray | None:
        """That of a sample of ImageNet, which is kept with the run, if it has one."""
        if self.normalization is None or isinstance(self.feed, data.InMemory):
            return None
        mean = np.asarray(self.normalization.mean)
        return mean if mean.ndim == 3 else None


def check(config: Config) -> None:
    """Raises what `build` would, as far as it needs neither data nor devices.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    check_config(config)
    _model(config)


def build(config: Config, mean_image: np.ndarray | None = None) -> Experiment:
    """Everything that a run of this config needs.

    Args:
        config: of the run.
        mean_image: that of ImageNet which is kept with the run; None: it is computed,
            if the config asks for one.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    check_config(config)
    devices = choose_devices(config)
    _use_compilation_cache(config.compilation_cache)
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)

    spec = dataset_spec(config.dataset)
    axis_name = parallel.batch_norm_axis(devices, config.batch_norm)
    model, image_shape = network(config, axis_name)
    stochastic_depth = model.stochastic_depth

    feed = feeds.make_feed(
        config, host_index=jax.process_index(), num_hosts=jax.process_count()
    )
    steps_per_epoch = data.steps_per_epoch(feed.num_train, config.batch_size)
    total_steps = count_steps(config, steps_per_epoch)
    schedule = make_schedule(config, steps_per_epoch, total_steps)
    feedback = _feedback(config)
    loss_scaling = optim.LossScaling() if config.dtype == "float16" else None
    tx = optim.sgd(
        schedule,
        momentum=config.momentum,
        momentum_form=config.momentum_form,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        decay=config.weight_decay_on,
        bias_rate=config.bias_rate,
    )

    params_key, steps_key = jax.random.split(jax.random.key(config.seed))
    state = train.create_state(
        params_key,
        model=model,
        tx=tx,
        image_shape=image_shape,
        feedback=feedback,
        loss_scaling=loss_scaling,
    )
    normalization = _normalization(config, feed, mean_image)
    preprocess, augment = _preprocessing(config, spec, feed, normalization)
    axis_name = parallel.axis_name(devices)
    gates_from_step = config.stochastic_depth_from_epoch * steps_per_epoch
    gates_from_step = min(gates_from_step, total_steps)  # beyond it nothing differs
    train_step = train.make_train_step(
        model=model,
        tx=tx,
        preprocess=augment,
        gates_from_step=gates_from_step,
        aux_loss_weight=config.aux_loss_weight,
        feedback=feedback,
        loss_scaling=loss_scaling,
        micro_batches=config.micro_batches,
        axis_name=axis_name,
    )
    mode = config.parallelism
    replicate = partial(parallel.replicate, devices=devices, mode=mode)
    test, constant_test = (
        _test_steps(network, preprocess, devices, mode)
        for network in (model, model.clone(stochastic_depth=None))
    )
    return Experiment(
        config=config,
        devices=devices,
        model=model,
        params=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        stochastic_depth=stochastic_depth,
        image_shape=image_shape,
        feed=feed,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        schedule=schedule,
        feedback=feedback,
        initial_state=replicate(state),
        replicate=replicate,
        gates_from_step=gates_from_step,
        train_step=parallel.compile_train_step(train_step, devices, mode=mode),
        test=test,
        constant_test=constant_test,
        normalization=normalization,
        preprocess=preprocess,
        key=steps_key,
    )


def _test_steps(model, preprocess, devices, mode):
    parts = {
        "model": model,
        "preprocess": preprocess,
        "axis_name": parallel.axis_name(devices),
    }
    return TestSteps(
        parallel.compile_eval_step(train.make_eval_step(**parts), devices, mode=mode),
        parallel.compile_statistics_step(
            train.make_statistics_step(**parts), devices, mode=mode
        ),
    )


def choose_devices(config: Config) -> list[jax.Device]:
    """Those that a run computes on.

    Raises:
        InputError: there are not so many, or the batch does not divide by them and by
            micro_batches.
    """
    devices = parallel.choose_devices(config.num_devices, config.batch_size)
    share = config.batch_size // len(devices)
    if share % config.micro_batches:
        raise InputError(
            f"micro_batches {config.micro_batches} do not divide the {share} "
            "examples of each device."
        )
    return devices


def network(
    config: Config, axis_name: str | None = None
) -> tuple[Network, tuple[int, int, int]]:
    """A config's network, without parameters, and the (H, W, C) it is trained on.

    Args:
        config: of the network and its data set.
        axis_name: over which BatchNorm is synchronised.

    Raises:
        InputError: model_kwargs that do not fit the network or those images.
    """
    model = _model(config, axis_name)
    spec = dataset_spec(config.dataset)
    image_shape = spec.image_shape
    if spec is imagenet.SPEC:
        image_shape = (config.image_size, config.image_size, 3)
    _check_network(config, model, image_shape)
    return model, image_shape


def _normalization(config, feed, mean_image):
    kind = config.normalization
    if kind == "contrast":
        return None
    if isinstance(feed, data.InMemory) or kind != "mean_image":
        return data.normalization(feed.parts["train"], kind)
    if mean_image is None:
        if parallel.is_first_process():
            number = min(config.mean_image_examples, feed.num_train)
            print(f"The mean image of {number:,} training images is taken, once.")
        mean_image = feeds.mean_image(feed, config)
    return data.Normalization(mean_image, np.float32(1))


def _preprocessing(config, spec, feed, normalization):
    """Two functions: pixels to normalised images, and the same with augmentation."""
    preprocess = data.contrast_normalize
    if normalization is not None:
        mean, std = normalization.mean, normalization.std
        preprocess = partial(data.normalize, mean=mean, std=std)
    if not config.augment:
        return preprocess, lambda key, images, first_index: preprocess(images)
    jitter, pca_std = config.color_jitter, config.pca_noise
    pad, flip = config.augment_pad, config.augment_flip
    pad = spec.pad if pad is None else pad
    flip = spec.flip if flip is None else flip
    if not isinstance(feed, data.InMemory):  # its workers crop and mirror
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

    return preprocess, augment


_MOST_STEPS = 2**31  # they are counted in int32


def count_steps(config: Config, steps_per_epoch: int) -> int:
    """Of the whole run.

    Raises:
        InputError: they are 2^31 or more.
    """
    lengths = [config.steps, config.epochs and config.epochs * steps_per_epoch]
    steps = min(length for length in lengths if length is not None)
    if steps >= _MOST_STEPS:
        raise InputError(
            f"epochs={config.epochs} of {steps_per_epoch} steps make {steps:,}, and "
            "a run has less than 2^31."
        )
    return steps


def make_schedule(config: Config, steps_per_epoch: int, total_steps: int) -> Callable:
    """The learning rate by step, but for the feedback's factor.

    Raises:
        InputError: a drop or the warm-up at a step of 2^31 or more, or drops before it.
    """
    units = {"steps": 1, "epochs": steps_per_epoch, "fraction": total_steps}

    def in_steps(name, length, unit):
        steps = int(length * units[unit])
        if steps >= _MOST_STEPS:
            raise InputError(
                f"{name} has {length}, which is {steps:,} steps; a run has less than "
                "2^31."
            )
        return steps

    warmup = {
        "warmup_steps": in_steps("warmup", config.warmup, config.warmup_unit),
        "warmup_learning_rate": config.warmup_learning_rate,
    }
    if config.lr_schedule == "plateau":
        return optim.piecewise_schedule(config.learning_rate, **warmup)
    if config.lr_schedule == "cosine":
        return optim.cosine_schedule(
            config.learning_rate, total_steps=total_steps, **warmup
        )
    unit = config.lr_drops_unit
    return optim.piecewise_schedule(
        config.learning_rate,
        drops=[in_steps("lr_drops", drop, unit) for drop in config.lr_drops],
        factor=config.lr_factor,
        **warmup,
    )


def _feedback(config):
    """What of the rate depends on how training goes, if anything does."""
    until = config.warmup_until_error
    factor = 1.0
    if until is not None:
        factor = config.warmup_learning_rate / config.learning_rate
    by_plateau = config.lr_schedule == "plateau"
    return optim.RateController(
        warmup_factor=factor,
        warmup_until_error=until,
        plateau_factor=config.lr_factor,
        plateau_patience=config.plateau_patience if by_plateau else None,
        plateau_drops=config.plateau_drops,
    )


def _model(config, axis_name=None):
    stochastic_depth = _stochastic_depth(config.stochastic_depth)
    if config.stochastic_depth_from_epoch and (
        stochastic_depth is None or stochastic_depth.granularity == "subset"
    ):
        raise InputError(
            "stochastic_depth_from_epoch needs stochastic_depth of a granularity other "
            'than "subset".'
        )
    derived = {
        "num_classes": dataset_spec(config.dataset).num_classes,
        "stochastic_depth": stochastic_depth,
        "axis_name": axis_name,
        "dtype": jnp.dtype(config.dtype),
    }
    for name in config.model_kwargs:
        if name in derived:
            raise InputError(f"model_kwargs cannot set {name}: other fields do.")
    with _unfit_in_a_sentence(config):
        model = rn_jax.create_model(config.model, **derived, **config.model_kwargs)
        num_blocks = model.num_blocks
    if num_blocks > _MOST_BLOCKS:
        raise InputError(
            f"{config.model} with these model_kwargs has {num_blocks:,} blocks; at "
            f"most {_MOST_BLOCKS:,} are taken."
        )
    return model


_MOST_BLOCKS = 10_000
_MOST_PARAMS = 2**31


def _check_network(config, model, image_shape):
    """Traces a network with model_kwargs, which may be unfit in ways of many kinds.

    Raises:
        InputError: it cannot be applied to such images, or has too many parameters.
    """
    if not config.model_kwargs:
        return
    model = model.clone(axis_name=None)

    def apply(images):
        key = jax.random.key(0)
        variables = model.init({"params": key}, images, train=False)
        logits, _ = model.apply(
            variables,
            images,
            train=True,
            rngs={**train.step_rngs(key), "gates": key},
            mutable=train.COLLECTIONS,
        )
        return variables["params"], logits

    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    with _unfit_in_a_sentence(config):
        params, logits = jax.eval_shape(apply, images)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if size > _MOST_PARAMS:
        raise InputError(
            f"{config.model} with these model_kwargs has {size:,} parameters; at "
            "most 2^31 are taken."
        )
    if logits.ndim != 2 or 0 in logits.shape:
        raise InputError(
            f"{config.model} with these model_kwargs gives no logits for images of "
            f"{list(image_shape)}."
        )


@contextlib.contextmanager
def _unfit_in_a_sentence(config):
    """Turns what unfit model_kwargs make a network raise into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of Flax, JAX or NumPy, by what does not fit
        if not config.model_kwargs:
            raise
        raise InputError(
            f"{config.model} cannot be made with the model_kwargs "
            f"{shown(config.model_kwargs)} ({type(error).__name__}: "
            f"{first_line(error)})."
        ) from error


def _stochastic_depth(settings):
    if settings is None:
        return None
    fields = {"preset", *rn_jax.StochasticDepth.__dataclass_fields__}
    for name in settings:
        if name not in fields:
            raise rn_jax.errors.unknown_name("field of stochastic_depth", name, fields)
    if "preset" in settings:
        return rn_jax.StochasticDepth.preset(**settings)
    return rn_jax.StochasticDepth(**settings)


def _use_compilation_cache(folder):
    """JAX's cache on disk, for programs of any compile time."""
    if folder:
        path = os.path.expanduser(folder)
        filesystem.check(path)
        jax.config.update("jax_compilation_cache_dir", path)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
