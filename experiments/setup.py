# SPDX-License-Identifier: Apache-2.0
"""From a config to what a run needs: data, network, optimiser, compiled steps."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import rn_jax
from rn_jax import data, optim, parallel, train
from rn_jax.errors import InputError


@dataclass(frozen=True)
class Experiment:
    """A config made concrete. What depends on other fields is derived here, once.

    Attributes:
        config: the fields of configs/default.py, as plain values.
        model: without parameters; the state has them.
        params: number of parameters.
        train_examples, val_examples, test_examples: val_examples is None without a
            validation part.
        steps_per_epoch, total_steps: of the training part.
        schedule: learning rate by step.
        initial_state: before the first step, on all devices.
        gates_from_step: steps before stochastic depth begins.
        train_step: (state, batch, key) -> (state, metrics), compiled.
        eval_step: (variables, batch) -> sums, compiled; by the test rule.
        constant_eval_step: the same of constant depth, for the steps before.
        preprocess: pixels to normalised images.
        key: of all randomness in the training step.
    """

    config: Mapping[str, Any]
    devices: list[jax.Device]
    model: nn.Module
    params: int
    stochastic_depth: rn_jax.StochasticDepth | None
    train_examples: data.Examples
    val_examples: data.Examples | None
    test_examples: data.Examples
    steps_per_epoch: int
    total_steps: int
    schedule: Callable
    initial_state: train.TrainState
    gates_from_step: int
    train_step: Callable
    eval_step: Callable
    constant_eval_step: Callable
    preprocess: Callable
    key: jax.Array


def build(config: Mapping[str, Any]) -> Experiment:
    """Everything that a run of this config needs.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    _check_values(config)
    devices = parallel.choose_devices(config["num_devices"], config["batch_size"])
    _use_compilation_cache(config["compilation_cache"])

    spec = data.get_spec(config["dataset"])
    stochastic_depth = _stochastic_depth(config["stochastic_depth"])
    if config["stochastic_depth_from_epoch"] and (
        stochastic_depth is None or stochastic_depth.granularity == "subset"
    ):
        raise InputError(
            "stochastic_depth_from_epoch needs stochastic_depth of a granularity other "
            'than "subset".'
        )
    derived = {
        "num_classes": spec.num_classes,
        "stochastic_depth": stochastic_depth,
        "axis_name": parallel.batch_norm_axis(devices, config["batch_norm"]),
        "dtype": jnp.dtype(config["dtype"]),
    }
    for name in config["model_kwargs"]:
        if name in derived:
            raise InputError(f"model_kwargs cannot set {name}: other fields do.")
    model = rn_jax.create_model(config["model"], **derived, **config["model_kwargs"])

    dataset = data.load(config["dataset"], data_dir=config["data_dir"])
    train_examples, val_examples = dataset.train, None
    if config["protocol"] == "45k5k":
        train_examples, val_examples = data.split_validation(
            dataset.train,
            size=data.validation_size(spec, len(dataset.train)),
            seed=config["split_seed"],
        )
    steps_per_epoch = data.steps_per_epoch(len(train_examples), config["batch_size"])
    total_steps = _total_steps(config, steps_per_epoch)
    schedule = _schedule(config, steps_per_epoch, total_steps)
    tx = optim.sgd(
        schedule,
        momentum=config["momentum"],
        nesterov=config["nesterov"],
        weight_decay=config["weight_decay"],
        decay=config["weight_decay_on"],
    )

    params_key, steps_key = jax.random.split(jax.random.key(config["seed"]))
    state = train.create_state(
        params_key, model=model, tx=tx, image_shape=spec.image_shape
    )
    preprocess, augment = _preprocessing(config, spec, train_examples)
    axis_name = parallel.axis_name(devices)
    gates_from_step = config["stochastic_depth_from_epoch"] * steps_per_epoch
    train_step = train.make_train_step(
        model=model,
        tx=tx,
        preprocess=augment,
        stochastic_depth=stochastic_depth,
        gates_from_step=gates_from_step,
        aux_loss_weight=config["aux_loss_weight"],
        axis_name=axis_name,
    )
    eval_step, constant_eval_step = (
        parallel.compile_eval_step(
            train.make_eval_step(
                model=network, preprocess=preprocess, axis_name=axis_name
            ),
            devices,
        )
        for network in (model, model.clone(stochastic_depth=None))
    )
    return Experiment(
        config=config,
        devices=devices,
        model=model,
        params=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        stochastic_depth=stochastic_depth,
        train_examples=train_examples,
        val_examples=val_examples,
        test_examples=dataset.test,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        schedule=schedule,
        initial_state=parallel.replicate(state, devices),
        gates_from_step=gates_from_step,
        train_step=parallel.compile_train_step(train_step, devices),
        eval_step=eval_step,
        constant_eval_step=constant_eval_step,
        preprocess=preprocess,
        key=steps_key,
    )


def _preprocessing(config, spec, train_examples):
    """Two functions: pixels to normalised images, and the same with augmentation."""
    stats = data.normalization(train_examples, config["normalization"])

    def preprocess(images):
        return data.normalize(images, stats.mean, stats.std)

    if not config["augment"]:
        return preprocess, lambda key, images, first_index: preprocess(images)
    pad, flip = config["augment_pad"], config["augment_flip"]
    pad = spec.pad if pad is None else pad
    flip = spec.flip if flip is None else flip

    def augment(key, images, first_index):
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
    "dtype": ("float32", "bfloat16"),
    "lr_schedule": ("piecewise", "cosine"),
    "lr_drops_unit": ("steps", "epochs", "fraction"),
    "warmup_unit": ("steps", "epochs", "fraction"),
    "normalization": data.NORMALIZATIONS,
    "weight_decay_on": ("kernels", "all"),
    "batch_norm": ("global", "device"),
}
_AT_LEAST = {
    "steps": 1,
    "epochs": 1,
    "batch_size": 1,
    "eval_batch_size": 1,
    "eval_every_epochs": 1,
    "augment_pad": 0,
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
                f"{name} must be one of {', '.join(choices)}, not {config[name]!r}."
            )
    for name, least in _AT_LEAST.items():
        value = config[name]
        if value is not None and not value >= least:
            raise InputError(f"{name} must be at least {least}, not {value}.")
    for name in ("seed", "split_seed"):
        if config[name] >= 2**31:
            raise InputError(f"{name} must be below 2^31, not {config[name]}.")
    if not all(isinstance(drop, int | float) for drop in config["lr_drops"]):
        raise InputError(f"lr_drops must be numbers, not {config['lr_drops']}.")
    if config["model"] is None:
        raise InputError("Set model: a name of rn_jax.list_models().")
    if config["epochs"] is None and config["steps"] is None:
        raise InputError("Set epochs or steps: how long the run is.")


def _use_compilation_cache(folder):
    """JAX's cache on disk, for programs of any compile time."""
    if folder:
        path = Path(os.path.expanduser(folder))
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
