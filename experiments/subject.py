# SPDX-License-Identifier: Apache-2.0
"""A trained network to be studied: of a run, of ours in a file, or imported."""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
from etils import epath

import rn_jax
from configs.default import Config
from experiments import files, setup
from experiments.config import ANYWHERE, read_config
from experiments.feed import InMemory
from experiments.pretrained import other_channels
from experiments.workdir import Workdir
from rn_jax import data, parallel
from rn_jax.checkpoint import Checkpoints
from rn_jax.errors import InputError
from rn_jax.interop import from_torch, read_weights, torch_fields
from rn_jax.models.network import Network
from rn_jax.train import log_mean_softmax


@dataclass(frozen=True)
class Subject:
    """A trained network and what it is studied on.

    Attributes:
        label: short, for legends and folders.
        source: the run's folder or the file of weights, as given.
        model_name: of `list_models()`.
        model_kwargs: further fields of the network that decide what it computes.
        model: without parameters, and without synchronised BatchNorm.
        variables: in host memory.
        stochastic_depth: with which it was trained; None is constant depth.
        dataset: its name.
        normalization: of its images, see `data.normalization`.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
        train, test: examples.
        devices: to compute on.
        run: the run's config, its lines "epoch" of metrics.jsonl and its summary; None
            for weights in a file.
    """

    label: str
    source: str
    model_name: str
    model_kwargs: Mapping[str, Any]
    model: Network
    variables: Mapping[str, Any]
    stochastic_depth: rn_jax.StochasticDepth | None
    dataset: str
    normalization: str
    preprocess: Callable
    train: data.Examples
    test: data.Examples
    devices: Sequence[jax.Device]
    run: Mapping[str, Any] | None


def from_run(path: str, *, data_dir: str | None = None) -> Subject:
    """The network of a finished run, after its last epoch.

    Args:
        path: the run's folder, which is only read.
        data_dir: of the data set; None: as in training.

    Raises:
        InputError: no such run, one that has not ended, or one that cannot be read.
    """
    run = finished(path, data_dir=data_dir)
    config, experiment = run.config, run.experiment
    if not isinstance(experiment.feed, InMemory):
        raise InputError(
            f"Studies take data sets that fit into memory, and {config.dataset} "
            "does not: name a run on another; experiments.evaluate tests this one."
        )
    lines = Workdir(path, config).lines("metrics.jsonl")
    return Subject(
        label=_label(path),
        source=path,
        model_name=str(config.model),
        model_kwargs=config.model_kwargs,
        model=run.model,
        variables=run.variables,
        stochastic_depth=experiment.stochastic_depth,
        dataset=config.dataset,
        normalization=config.normalization,
        preprocess=experiment.preprocess,
        train=experiment.feed.parts["train"],
        test=experiment.feed.parts["test"],
        devices=experiment.devices,
        run={
            "config": config,
            "epochs": [line for line in lines if line["kind"] == "epoch"],
            "summary": run.summary,
        },
    )


class Finished(NamedTuple):
    """A run that has ended.

    Attributes:
        config: its fields, as it was trained.
        experiment: made of them, on the devices that are here now.
        model: without synchronised BatchNorm.
        variables: after the last epoch, in host memory.
        opened: f[L], the share of the steps in which block l was open; f[0] without
            gates.
        summary: its summary.json.
    """

    config: Config
    experiment: setup.Experiment
    model: Network
    variables: Mapping[str, Any]
    opened: np.ndarray
    summary: Mapping[str, Any]


def finished(
    path: str, *, data_dir: str | None = None, num_workers: int | None = None
) -> Finished:
    """A finished run, with its network as it was after the last epoch.

    Args:
        path: the run's folder, which is only read.
        data_dir: of the data set; None: as in training.
        num_workers: of ImageNet's feed; None: one per core.

    Raises:
        InputError: no such run, one that has not ended, or one that cannot be read.
    """
    folder = epath.Path(path)
    config = read_config(folder)
    workdir = Workdir(path, config)
    if (diverged := workdir.diverged()) and workdir.summary() is None:
        raise InputError(f"The run {path} diverged: {diverged['reason']}")
    if not (folder / "summary.json").exists():
        raise InputError(
            f"The run {path} has not ended: a finished one has a summary.json; the "
            "command that began it goes on with it."
        )
    summary = files.read_json(folder / "summary.json")
    # On the devices that are here now; what is computed does not depend on them.
    here: dict[str, Any] = {**ANYWHERE, "num_workers": num_workers}
    here["data_dir"] = data_dir or config.data_dir
    experiment = setup.build(
        dataclasses.replace(config, **here), mean_image=workdir.mean_image()
    )
    steps = summary.get("steps")
    if not isinstance(steps, int):
        raise InputError(f"{folder / 'summary.json'} is damaged: it has no steps.")
    state = _last_state(folder, steps, experiment.initial_state)
    if steps <= experiment.gates_from_step:  # it ended before they began
        constant = experiment.model.clone(stochastic_depth=None)
        experiment = dataclasses.replace(
            experiment, model=constant, stochastic_depth=None
        )
    return Finished(
        config,
        experiment,
        model=experiment.model.clone(axis_name=None),
        variables={name: state[name] for name in ("params", "batch_stats")},
        opened=np.asarray(state["open_counts"]) / steps,
        summary=summary,
    )


def make_probabilities(run: Finished) -> Callable[[np.ndarray], np.ndarray]:
    """Makes the function from uint8[B, V, H, W, C] to the softmax f64[B, K].

    It is the mean over the V views of each image, and computed on all devices.
    """
    experiment, model = run.experiment, run.model
    devices = experiment.devices
    variables = parallel.replicate(run.variables, devices)

    @jax.jit
    def mean_log(variables, images):
        flat = images.reshape(-1, *images.shape[2:])
        logits: Any = model.apply(variables, experiment.preprocess(flat), train=False)
        return log_mean_softmax(logits.reshape(*images.shape[:2], -1))

    def probabilities(images):
        rows = math.ceil(len(images) / len(devices)) * len(devices)
        filled = np.resize(images, (rows, *images.shape[1:]))
        found = mean_log(variables, parallel.split_examples(filled, devices))
        # In double precision the least likely classes keep their order.
        return np.exp(np.asarray(found, np.float64))[: len(images)]

    return probabilities


def _last_state(folder, step, like):
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        state = checkpoints.read(step, like)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes a reader raise
        raise InputError(
            f"The checkpoint of step {step}, the last of the run {folder}, is missing "
            "or damaged: restore it, or train the run again in another folder."
        ) from error
    finally:
        checkpoints.close()
    return flax.serialization.to_state_dict(jax.device_get(state))


def _label(path):
    """The folder's name; of one of several seeds, after that of the folder above.

    By itself, where `report.labels` looks at all runs: a folder of studies has this
    name, whatever else is compared.
    """
    folder = Path(os.path.abspath(path))
    is_seed = re.fullmatch(r"seed\d+", folder.name) and folder.parent.name
    return f"{folder.parent.name}-{folder.name}" if is_seed else folder.name


def from_weights(
    file: str,
    *,
    model: str,
    dataset: str,
    normalization: str,
    model_kwargs: Mapping[str, Any],
    data_dir: str | None,
) -> Subject:
    """A network with imported weights, of PyTorch projects that `from_torch` reads.

    Args:
        file: .safetensors, .pt, .pth, .th or .bin.
        model: name of `list_models()`.
        dataset: its name.
        normalization: of the images, see `data.normalization`.
        model_kwargs: fields of the network, if others than those of the project that
            the weights come from.
        data_dir: of the data set; None: as TFDS finds it.

    Raises:
        InputError: a name or a file that cannot be used.
    """
    spec = data.get_spec(dataset)
    weights = read_weights(file)
    devices = parallel.choose_devices(None, parallel.cpu_cores())  # before JAX is used
    fields = {**torch_fields(model, weights), **model_kwargs}
    variables = from_torch(model, weights, **fields)
    params = variables["params"]
    if "head" not in params:
        raise InputError(
            f"The weights {file} have no classifier, so that no error can be measured: "
            "name weights with one; init_from trains a new one."
        )
    classes = params["head"]["kernel"].shape[-1]
    if classes != spec.num_classes:
        raise InputError(
            f"The weights {file} tell {classes} classes apart, but {dataset} has "
            f"{spec.num_classes}."
        )
    network = rn_jax.create_model(model, **{"num_classes": classes, **fields})
    image = jax.ShapeDtypeStruct((1, *spec.image_shape), np.float32)
    shapes = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, train=False)["params"], image
    )
    flat = flax.traverse_util.flatten_dict
    if stem := other_channels(flat(shapes), flat(params)):
        raise InputError(
            f"The weights {file} are for images of {flat(params)[stem].shape[2]} "
            f"channels, and those of {dataset} have {spec.image_shape[2]}: name a data "
            "set of as many channels, or train on this one with init_from."
        )
    examples = data.load(dataset, data_dir=data_dir)
    return Subject(
        label=epath.Path(file).stem,
        source=file,
        model_name=model,
        model_kwargs=fields,
        model=network,
        variables=jax.tree.map(np.asarray, variables),
        stochastic_depth=None,
        dataset=dataset,
        normalization=normalization,
        preprocess=data.normalizer(examples.train, normalization),
        train=examples.train,
        test=examples.test,
        devices=devices,
        run=None,
    )


def from_saved(source: str, *, data_dir: str | None) -> Subject:
    """A network of ours with its weights, which say what they were trained on.

    Args:
        source: as for `rn_jax.load`.
        data_dir: of the data set; None: as TFDS finds it.

    Raises:
        InputError: it does not say so, or cannot be read.
    """
    devices = parallel.choose_devices(None, parallel.cpu_cores())  # before JAX is used
    info = rn_jax.read_info(source)
    dataset, found = info.get("dataset"), info.get("normalization")
    if dataset not in data.DATASETS or not isinstance(found, Mapping):
        raise InputError(
            f"{source} does not say which data set in memory it is for, and how images "
            "are normalised, as experiments.export writes it."
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
        stochastic_depth=model.stochastic_depth,
        dataset=dataset,
        normalization=found["kind"],
        preprocess=preprocess,
        train=examples.train,
        test=examples.test,
        devices=devices,
        run=None,
    )
