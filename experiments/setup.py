# SPDX-License-Identifier: Apache-2.0
"""From a config to what a run needs: data, network, optimiser, compiled steps."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import rn_jax
from experiments import feed as feeds
from rn_jax import data, optim, parallel, train
from rn_jax.data import imagenet
from rn_jax.errors import InputError


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
        config: the fields of configs/default.py, as plain values.
        model: without parameters; the state has them.
        params: number of parameters.
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
        preprocess: pixels to normalised images.
        key: of all randomness in the training step.
    """

    config: Mapping[str, Any]
    devices: list[jax.Device]
    model: nn.Module
    params: int
    stochastic_depth: rn_jax.StochasticDepth | None
    feed: feeds.InMemory | feeds.ImageNet
    steps_per_epoch: int
    total_steps: int
    schedule: Callable
    feedback: optim.Feedback
    initial_state: train.TrainState
    replicate: Callable
    gates_from_step: int
    train_step: Callable
    test: TestSteps
    constant_test: TestSteps
    preprocess: Callable
    key: jax.Array


def check(config: Mapping[str, Any]) -> None:
    """Raises what `build` would, as far as it needs neither data nor devices.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    _check_values(config)
    _model(config)


def build(config: Mapping[str, Any]) -> Experiment:
    """Everything that a run of this config needs.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    _check_values(config)
    devices = parallel.choose_devices(config["num_devices"], config["batch_size"])
    share = config["batch_size"] // len(devices)
    if share % config["micro_batches"]:
        raise InputError(
            f"micro_batches {config['micro_batches']} do not divide the {share} "
            "examples of each device."
        )
    _use_compilation_cache(config["compilation_cache"])
    jax.config.update("jax_default_matmul_precision", config["matmul_precision"])

    spec = _spec(config["dataset"])
    streamed = spec is imagenet.SPEC
    model = _model(config, parallel.batch_norm_axis(devices, config["batch_norm"]))
    stochastic_depth = model.stochastic_depth

    feed = (feeds.of_imagenet if streamed else feeds.in_memory)(
        config, host_index=jax.process_index(), num_hosts=jax.process_count()
    )
    steps_per_epoch = data.steps_per_epoch(feed.num_train, config["batch_size"])
    total_steps = _total_steps(config, steps_per_epoch)
    schedule = _schedule(config, steps_per_epoch, total_steps)
    feedback = _feedback(config)
    loss_scaling = optim.LossScaling() if config["dtype"] == "float16" else None
    tx = optim.sgd(
        schedule,
        momentum=config["momentum"],
        nesterov=config["nesterov"],
        weight_decay=config["weight_decay"],
        decay=config["weight_decay_on"],
        bias_rate=config["bias_rate"],
    )

    image_shape = spec.image_shape
    if streamed:
        image_shape = (config["image_size"], config["image_size"], 3)
    params_key, steps_key = jax.random.split(jax.random.key(config["seed"]))
    state = train.create_state(
        params_key,
        model=model,
        tx=tx,
        image_shape=image_shape,
        feedback=feedback,
        loss_scaling=loss_scaling,
    )
    preprocess, augment = _preprocessing(config, spec, feed)
    axis_name = parallel.axis_name(devices)
    gates_from_step = config["stochastic_depth_from_epoch"] * steps_per_epoch
    train_step = train.make_train_step(
        model=model,
        tx=tx,
        preprocess=augment,
        stochastic_depth=stochastic_depth,
        gates_from_step=gates_from_step,
        aux_loss_weight=config["aux_loss_weight"],
        feedback=feedback,
        loss_scaling=loss_scaling,
        micro_batches=config["micro_batches"],
        axis_name=axis_name,
    )
    mode = config["parallelism"]
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


def _spec(name):
    if name == imagenet.SPEC.name:
        return imagenet.SPEC
    try:
        return data.get_spec(name)
    except InputError:
        raise rn_jax.errors.unknown_name(
            "data set", name, [*data.DATASETS, imagenet.SPEC.name]
        ) from None


def _preprocessing(config, spec, feed):
    """Two functions: pixels to normalised images, and the same with augmentation."""
    kind, in_memory = config["normalization"], isinstance(feed, feeds.InMemory)
    if not in_memory and kind in ("channel", "mean_image"):
        raise InputError(
            f"normalization={kind} is taken from images in memory; for {spec.name} it "
            "is imagenet, imagenet_mean, unit or contrast."
        )
    preprocess = data.normalizer(feed.parts["train"], kind)
    if not config["augment"]:
        return preprocess, lambda key, images, first_index: preprocess(images)
    jitter, pca_std = config["color_jitter"], config["pca_noise"]
    pad, flip = config["augment_pad"], config["augment_flip"]
    pad = spec.pad if pad is None else pad
    flip = spec.flip if flip is None else flip
    if not in_memory:  # its workers crop and mirror
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


def _total_steps(config, steps_per_epoch):
    lengths = [config["steps"], config["epochs"] and config["epochs"] * steps_per_epoch]
    return min(length for length in lengths if length is not None)


def _schedule(config, steps_per_epoch, total_steps):
    in_steps = {
        "steps": 1,
        "epochs": steps_per_epoch,
        "fraction": total_steps,
    }
    drops_in = in_steps[config["lr_drops_unit"]]
    warmup = {
        "warmup_steps": int(config["warmup"] * in_steps[config["warmup_unit"]]),
        "warmup_learning_rate": config["warmup_learning_rate"],
    }
    if config["lr_schedule"] == "plateau":
        return optim.piecewise_schedule(config["learning_rate"], **warmup)
    if config["lr_schedule"] == "cosine":
        return optim.cosine_schedule(
            config["learning_rate"], total_steps=total_steps, **warmup
        )
    return optim.piecewise_schedule(
        config["learning_rate"],
        drops=[int(drop * drops_in) for drop in config["lr_drops"]],
        factor=config["lr_factor"],
        **warmup,
    )


def _feedback(config):
    """What of the rate depends on how training goes, if anything does."""
    until = config["warmup_until_error"]
    factor = 1.0
    if until is not None:
        factor = config["warmup_learning_rate"] / config["learning_rate"]
    by_plateau = config["lr_schedule"] == "plateau"
    return optim.Feedback(
        warmup_factor=factor,
        warmup_until_error=until,
        plateau_factor=config["lr_factor"],
        plateau_patience=config["plateau_patience"] if by_plateau else None,
        plateau_drops=config["plateau_drops"],
    )


def _model(config, axis_name=None):
    stochastic_depth = _stochastic_depth(config["stochastic_depth"])
    if config["stochastic_depth_from_epoch"] and (
        stochastic_depth is None or stochastic_depth.granularity == "subset"
    ):
        raise InputError(
            "stochastic_depth_from_epoch needs stochastic_depth of a granularity other "
            'than "subset".'
        )
    derived = {
        "num_classes": _spec(config["dataset"]).num_classes,
        "stochastic_depth": stochastic_depth,
        "axis_name": axis_name,
        "dtype": jnp.dtype(config["dtype"]),
    }
    for name in config["model_kwargs"]:
        if name in derived:
            raise InputError(f"model_kwargs cannot set {name}: other fields do.")
    return rn_jax.create_model(config["model"], **derived, **config["model_kwargs"])


def _stochastic_depth(settings):
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise InputError(
            "stochastic_depth must be None or its fields, as {'last_survival': 0.5}, "
            f"not {settings!r}."
        )
    fields = {"preset", *rn_jax.StochasticDepth.__dataclass_fields__}
    for name in settings:
        if name not in fields:
            raise rn_jax.errors.unknown_name("field of stochastic_depth", name, fields)
    try:
        if "preset" in settings:
            return rn_jax.StochasticDepth.preset(**settings)
        return rn_jax.StochasticDepth(**settings)
    except TypeError as error:
        raise InputError(
            f"stochastic_depth has a value of a wrong type: {error}."
        ) from None


_CHOICES = {
    "protocol": ("full", "45k5k"),
    "damaged_records": ("stop", "skip"),
    "train_crop": ("area", "scale"),
    "eval_crops": ("center", "ten"),
    "dtype": ("float32", "bfloat16", "float16"),
    "matmul_precision": (None, "bfloat16", "tensorfloat32", "float32"),
    "lr_schedule": ("piecewise", "cosine", "plateau"),
    "lr_drops_unit": ("steps", "epochs", "fraction"),
    "warmup_unit": ("steps", "epochs", "fraction"),
    "normalization": data.NORMALIZATIONS,
    "weight_decay_on": ("kernels", "all"),
    "parallelism": parallel.MODES,
    "batch_norm": ("global", "device"),
    "batch_norm_at_test": ("moving", "exact"),
}
_AT_LEAST = {
    "steps": 1,
    "epochs": 1,
    "batch_size": 1,
    "eval_batch_size": 1,
    "eval_every_epochs": 1,
    "eval_every_steps": 0,
    "plateau_patience": 1,
    "plateau_drops": 1,
    "micro_batches": 1,
    "batch_norm_examples": 1,
    "color_jitter": 0,
    "pca_noise": 0,
    "bias_rate": 0,
    "augment_pad": 0,
    "image_size": 1,
    "eval_size": 1,
    "eval_resize": 1,
    "num_workers": 0,
    "warmup": 0,
    "checkpoint_every_steps": 0,
    "log_every_steps": 0,
    "learning_rate": 0,
    "warmup_learning_rate": 0,
    "lr_factor": 0,
    "momentum": 0,
    "weight_decay": 0,
    "aux_loss_weight": 0,
    "stochastic_depth_from_epoch": 0,
    "seed": 0,
    "split_seed": 0,
}


def _check_values(config):
    for name, choices in _CHOICES.items():
        if config[name] not in choices:
            raise InputError(
                f"{name} must be one of {', '.join(map(str, choices))}, not "
                f"{config[name]!r}."
            )
    for name, least in _AT_LEAST.items():
        value = config[name]
        if value is not None and not value >= least:
            raise InputError(f"{name} must be at least {least}, not {value}.")
    for name in ("seed", "split_seed"):
        if config[name] >= 2**31:
            raise InputError(f"{name} must be below 2^31, not {config[name]}.")
    drops = config["lr_drops"]
    if not all(isinstance(drop, int | float) for drop in drops):
        raise InputError(f"lr_drops must be numbers, not {drops}.")
    if list(drops) != sorted(set(drops)):
        raise InputError(f"lr_drops must come one after another, not as {drops}.")
    scales = config["train_scales"]
    if len(scales) != 2 or not all(isinstance(scale, int) for scale in scales):
        raise InputError(f"train_scales must be two whole numbers, not {scales}.")
    if config["batch_size"] % config["micro_batches"]:
        raise InputError(
            f"micro_batches {config['micro_batches']} do not divide a batch_size of "
            f"{config['batch_size']}."
        )
    colours = config["augment"] and (config["color_jitter"] or config["pca_noise"])
    if colours and _spec(config["dataset"]).image_shape[-1] != 3:
        raise InputError(
            f"color_jitter and pca_noise need colours, which {config['dataset']} has "
            "not."
        )
    if config["model"] is None:
        raise InputError("Set model: a name of rn_jax.list_models().")
    if config["lr_schedule"] == "plateau" and not 0 < config["lr_factor"] < 1:
        raise InputError(
            "lr_schedule=plateau needs an lr_factor between 0 and 1, not "
            f"{config['lr_factor']}."
        )
    if config["warmup_until_error"] is not None and not config["learning_rate"] > 0:
        raise InputError("warmup_until_error needs a learning_rate above 0.")
    if config["warmup_until_error"] is not None and config["warmup"]:
        raise InputError(
            "Set either warmup, a length, or warmup_until_error, and the other to its "
            "default, 0 or None."
        )
    if config["lr_schedule"] == "plateau" and config["protocol"] == "full":
        raise InputError(
            "lr_schedule=plateau needs a validation part, as protocol=45k5k has it: "
            "the test set is not used to choose anything."
        )
    if config["epochs"] is None and config["steps"] is None:
        raise InputError("Set epochs or steps: how long the run is.")


def _use_compilation_cache(folder):
    """JAX's cache on disk, for programs of any compile time."""
    if folder:
        path = Path(os.path.expanduser(folder))
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
