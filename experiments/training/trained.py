# SPDX-License-Identifier: Apache-2.0
"""A finished run and its trained network, opened for reading only."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from configs.default import Config
from experiments.config import ANYWHERE, read_config
from experiments.training import setup
from experiments.training.workdir import Workdir, read_checkpoint
from rn_jax import parallel
from rn_jax.errors import InputError
from rn_jax.models.network import Network
from rn_jax.train import log_mean_softmax


class Finished(NamedTuple):
    """A run that has ended.

    Attributes:
        config: its fields, as it was trained.
        experiment: made of them, on the devices that are available now.
        model: the network without synchronised BatchNorm.
        variables: after the last epoch, in host memory; averages with `ema_decay`.
        opened: f[L], share of steps in which block l was open; f[0] without gates.
        summary: its summary.json.
    """

    config: Config
    experiment: setup.Experiment
    model: Network
    variables: Mapping[str, Any]
    opened: np.ndarray
    summary: Mapping[str, Any]


def finished(
    path: str,
    *,
    data_dir: str | None = None,
    num_workers: int | None = None,
    step: int | None = None,
) -> Finished:
    """Open a finished run, with its network as it was after the last epoch.

    Args:
        path: the run's folder, which is only read.
        data_dir: folder of the data set; None: as in training.
        num_workers: processes of ImageNet's feed; None: one per core.
        step: step of the checkpoint to open instead of the last.

    Raises:
        InputError: there is no such run, it has not ended or cannot be read, or it has
            no checkpoint of that step.
    """
    folder = epath.Path(path)
    config = read_config(folder)
    workdir = Workdir(path, config)
    summary = workdir.summary()
    if summary is None and (diverged := workdir.diverged()):
        raise InputError(f"The run {path} diverged: {diverged['reason']}")
    if summary is None:
        raise InputError(
            f"The run {path} has not ended: a finished one has a summary.json; the "
            "command that began it resumes it."
        )
    # On the devices that are available now; what is computed does not depend on them.
    here: dict[str, Any] = {**ANYWHERE, "num_workers": num_workers}
    here["data_dir"] = data_dir or config.data_dir
    experiment = setup.prepare(
        dataclasses.replace(config, **here), mean_image=workdir.mean_image()
    )
    steps = summary.get("steps")
    if not isinstance(steps, int):
        raise InputError(f"{folder / 'summary.json'} is damaged: it has no steps.")
    like = jax.eval_shape(experiment.create_state, jax.random.key(0))
    steps = steps if step is None else step
    state = read_checkpoint(folder, steps, like=like)
    if steps <= experiment.gates_from_step:  # it ended before stochastic depth began
        constant = experiment.model.clone(stochastic_depth=None)
        experiment = dataclasses.replace(experiment, model=constant)
    return Finished(
        config,
        experiment,
        model=experiment.model.clone(axis_name=None),
        variables=state["ema"]
        or {name: state[name] for name in ("params", "batch_stats")},
        opened=np.asarray(state["open_counts"]) / steps,
        summary=summary,
    )


def make_probabilities(run: Finished) -> Callable[[np.ndarray], np.ndarray]:
    """Make the function from uint8[B, H, W, C] to the softmax f64[B, K].

    It is computed on all devices. The softmax of several views of each image,
    uint8[B, V, H, W, C], is their mean.
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
        images = images if images.ndim == 5 else images[:, None]
        rows = math.ceil(len(images) / len(devices)) * len(devices)
        filled = np.resize(images, (rows, *images.shape[1:]))
        found = mean_log(variables, parallel.split_examples(filled, devices))
        # In double precision the least likely classes keep their order.
        return np.exp(np.asarray(found, np.float64))[: len(images)]

    return probabilities
