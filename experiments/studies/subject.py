# SPDX-License-Identifier: Apache-2.0
"""A trained network to study: from a run, a file of this library, or imported."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np
from etils import epath

import rn_jax
from configs.default import Config
from experiments.training.pretrained import other_channels
from experiments.training.trained import finished
from experiments.training.workdir import Workdir
from rn_jax import data, parallel
from rn_jax.errors import InputError
from rn_jax.interop import from_torch, read_weights, torch_fields
from rn_jax.models.network import Network
from rn_jax.weights import is_saved

# The source of a network with initial parameters.
UNTRAINED = "initial parameters"


class Log(NamedTuple):
    """The log of a finished run: its config, "epoch" lines and summary."""

    config: Config
    epochs: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Subject:
    """A trained network with its data.

    Attributes:
        label: short name for legends and folders.
        source: the run folder or the file of weights, as given.
        model_name: name in `list_models()`.
        model_kwargs: further fields of the network that affect its function.
        model: network without parameters and without synchronised BatchNorm.
        variables: its variables, in host memory.
        dataset: name of the data set.
        normalization: normalisation of its images, see `data.normalization`.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
        train, test: examples.
        devices: devices to compute on.
        run: log of the run that trained it; None for weights in a file.
    """

    label: str
    source: str
    model_name: str
    model_kwargs: Mapping[str, Any]
    model: Network
    variables: Mapping[str, Any]
    dataset: str
    normalization: str
    preprocess: Callable
    train: data.Examples
    test: data.Examples
    devices: Sequence[jax.Device]
    run: Log | None = None

    @property
    def stochastic_depth(self) -> rn_jax.StochasticDepth | None:
        """Settings with which the network was trained; None is constant depth."""
        return self.model.stochastic_depth


def find(
    workdir: str | None = None,
    weights: str | None = None,
    *,
    data_dir: str | None = None,
    seed: int = 0,
    step: int | None = None,
    **imported: Any,
) -> Subject:
    """Open the network of a run, of a file, of imported weights, or an untrained one.

    Args:
        workdir: folder of a finished run, as the only argument.
        weights: file of this library, as the only argument; or imported weights; None
            with a model and a data set: initial parameters.
        data_dir: folder of the data set; None: that of the run, or of TFDS.
        seed: seed of initial parameters.
        step: step of the run's checkpoint; None: the last.
        imported: further arguments of `from_weights` or `untrained`; None is the
            default.

    Raises:
        InputError: another combination, or the network cannot be opened.
    """
    weights = os.path.expanduser(weights or "")
    given = {name: value for name, value in imported.items() if value}
    if workdir and not (weights or given):
        return from_run(workdir, data_dir=data_dir, step=step)
    if weights and not workdir:
        if not given and (is_saved(weights) or not os.path.isfile(weights)):
            return from_saved(weights, data_dir=data_dir)
        if {"model", "dataset"} <= given.keys():
            return from_weights(weights, data_dir=data_dir, **given)
    if not (weights or workdir) and {"model", "dataset"} <= given.keys():
        return untrained(data_dir=data_dir, seed=seed, **given)
    raise InputError(
        "Name a finished run by --workdir alone, weights of this library by --weights "
        "alone, imported weights by --model, --weights and --dataset, or an untrained "
        "network by --model and --dataset."
    )


def from_run(
    path: str, *, data_dir: str | None = None, step: int | None = None
) -> Subject:
    """Open the network of a run after its last epoch, or at another checkpoint.

    The arguments are those of `finished`.

    Raises:
        InputError: as `finished`, or the run's data set is ImageNet.
    """
    run = finished(path, data_dir=data_dir, step=step)
    config, experiment = run.config, run.experiment
    if experiment.spec.crops_on_host:
        raise InputError(
            f"Studies need a data set that fits into memory, and {config.dataset} does "
            "not: name a run on another data set, or use experiments.evaluate."
        )
    return Subject(
        label=_label(path) + ("" if step is None else f"-step{step}"),
        source=path,
        model_name=str(config.model),
        model_kwargs=config.model_kwargs,
        model=run.model,
        variables=run.variables,
        dataset=config.dataset,
        normalization=config.normalization,
        preprocess=experiment.preprocess,
        train=experiment.feed.parts["train"],
        test=experiment.feed.parts["test"],
        devices=experiment.devices,
        run=Log(config, Workdir(path, config).epochs(), run.summary),
    )


def _label(path):
    """Return a run's label: its folder, with the one above for a run of several seeds.

    Unlike `report.labels` it does not depend on other runs, because it names the folder
    of the run's studies.
    """
    folder = Path(os.path.abspath(path))
    is_seed = re.fullmatch(r"seed\d+", folder.name) and folder.parent.name
    return f"{folder.parent.name}-{folder.name}" if is_seed else folder.name


def from_weights(
    file: str,
    *,
    model: str,
    dataset: str,
    normalization: str = "imagenet",
    model_kwargs: Mapping[str, Any] | None = None,
    data_dir: str | None = None,
) -> Subject:
    """Open a network with imported weights that `from_torch` can read.

    Args:
        file: .safetensors, .pt, .pth, .th or .bin.
        model: name in `list_models()`.
        dataset: name of the data set.
        normalization: normalisation of the images, see `data.normalization`.
        model_kwargs: fields of the network that differ from those of the weights'
            project.
        data_dir: folder of the data set; None: that of TFDS.

    Raises:
        InputError: a name is unknown or a file cannot be used.
    """
    spec = data.get_spec(dataset)
    weights = read_weights(file)
    devices = parallel.choose_devices(None, parallel.cpu_cores())  # before JAX is used
    fields = {**torch_fields(model, weights), **(model_kwargs or {})}
    variables = from_torch(model, weights, **fields)
    params = variables["params"]
    if "head" not in params:
        raise InputError(
            f"The weights {file} have no classifier, so their error cannot be "
            "measured: name weights with a classifier, or train one with init_from."
        )
    classes = params["head"]["kernel"].shape[-1]
    if classes != spec.num_classes:
        raise InputError(
            f"The weights {file} have {classes} output classes, but {dataset} has "
            f"{spec.num_classes} classes."
        )
    network = rn_jax.create_model(model, **{"num_classes": classes, **fields})
    image = jax.ShapeDtypeStruct((1, *spec.image_shape), np.float32)
    init = partial(network.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), image)["params"]
    ours, theirs = map(flax.traverse_util.flatten_dict, (shapes, params))
    if kernels := other_channels(ours, theirs):
        raise InputError(
            f"The weights {file} are for images of {theirs[kernels[0]].shape[2]} "
            f"channels, but those of {dataset} have {spec.image_shape[2]}: name a data "
            "set with the same number of channels, or train on this one with init_from."
        )
    return _on_data(
        data.load(dataset, data_dir=data_dir),
        label=epath.Path(file).stem,
        source=file,
        model_name=model,
        model_kwargs=fields,
        model=network,
        variables=variables,
        dataset=dataset,
        normalization=normalization,
        devices=devices,
    )


def _on_data(examples, *, variables, normalization, **facts):
    """Return a subject whose images are normalised by their training part."""
    return Subject(
        **facts,
        variables=jax.tree.map(np.asarray, variables),
        normalization=normalization,
        preprocess=data.normalizer(examples.train, normalization),
        train=examples.train,
        test=examples.test,
    )


def untrained(
    *,
    model: str,
    dataset: str,
    normalization: str = "channel",
    model_kwargs: Mapping[str, Any] | None = None,
    data_dir: str | None = None,
    seed: int = 0,
) -> Subject:
    """Return a network with initial parameters, for studies of the start of training.

    The arguments are those of `from_weights`, and the seed of the parameters.

    Raises:
        InputError: a name is unknown, or the data set is not found.
    """
    spec = data.get_spec(dataset)
    devices = parallel.choose_devices(None, parallel.cpu_cores())  # before JAX is used
    fields = dict(model_kwargs or {})
    network = rn_jax.create_model(model, **{"num_classes": spec.num_classes, **fields})
    init = jax.jit(partial(network.init, train=False))
    variables = init(jax.random.key(seed), np.zeros((1, *spec.image_shape), np.float32))
    return _on_data(
        data.load(dataset, data_dir=data_dir),
        label="-".join([model, *(f"{name}={value}" for name, value in fields.items())]),
        source=UNTRAINED,
        model_name=model,
        model_kwargs=fields,
        model=network,
        variables=variables,
        dataset=dataset,
        normalization=normalization,
        devices=devices,
    )


def from_saved(source: str, *, data_dir: str | None = None) -> Subject:
    """Open a network that `rn_jax.load` reads from `source`, on its own data set.

    The file names the data set, which is in `data_dir`; None: where TFDS finds it.

    Raises:
        InputError: the file names no data set or cannot be read.
    """
    devices = parallel.choose_devices(None, parallel.cpu_cores())  # before JAX is used
    info = rn_jax.read_info(source)
    dataset, found = info.get("dataset"), info.get("normalization")
    if dataset not in data.DATASETS or not isinstance(found, Mapping):
        raise InputError(
            f"{source} does not name an in-memory data set and the normalisation of "
            "its images, as files of experiments.export do."
        )
    examples = data.load(dataset, data_dir=data_dir)
    if found["kind"] == "contrast":
        preprocess = data.contrast_normalize
    else:
        mean, std = (np.array(found[name], np.float32) for name in ("mean", "std"))
        preprocess = partial(data.normalize, mean=mean, std=std)
    model, variables = rn_jax.load(source)
    return Subject(
        label=epath.Path(source).stem,
        source=source,
        model_name=info["model"],
        model_kwargs=info["fields"],
        model=model,
        variables=jax.tree.map(np.asarray, variables),
        dataset=dataset,
        normalization=found["kind"],
        preprocess=preprocess,
        train=examples.train,
        test=examples.test,
        devices=devices,
    )
