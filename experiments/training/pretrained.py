# SPDX-License-Identifier: Apache-2.0
"""Start training from the weights of another run, or from a file of weights."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import flax
import flax.serialization
import jax
import numpy as np
from etils import epath

from configs.default import Config
from experiments.config import read_config
from experiments.training.network import make_model
from experiments.training.workdir import read_checkpoint
from rn_jax import filesystem
from rn_jax.errors import InputError
from rn_jax.interop import from_torch, read_weights, torch_fields
from rn_jax.models.channels import kernel_for_channels
from rn_jax.models.deepen import cannot_deepen, deepen
from rn_jax.train import TrainState
from rn_jax.weight_files import is_hub_name
from rn_jax.weights import is_saved, load

_logger = logging.getLogger(__name__)

# The largest size of another run's state, relative to ours: its head may be larger.
_TIMES_OURS = 16


def initialise(state: TrainState, config: Config) -> TrainState:
    """Return the state before the first step, with the weights named by `init_from`.

    Parameters and BatchNorm's statistics are replaced, except those of the classifier
    (the layer "head") and of auxiliary heads, which stay new. So do the fully connected
    layers before the classifier, if the weights have neither. The optimiser's state is
    unchanged.

    With `init_deepen` the weights, of a network of this library with fewer blocks per
    stage, become those of a deeper network with the same function: see
    `rn_jax.deepen`. The classifier is kept too, so that training begins with the error
    of the shallower network.

    If one network reads greyscale images and the other images of n channels, the kernel
    of the first convolution is adapted, and a warning is logged: see
    `rn_jax.with_channels`.

    Args:
        state: state of a new network.
        config: the run's; its `init_from` is the folder of a run (the last checkpoint
            is read), a name in `list_weights()`, a file of `rn_jax.save`, or a file of
            a PyTorch project that `interop.read_weights` reads. "~" is expanded.

    Raises:
        InputError: there are no such weights, or they are of another network; or this
            network is not a deeper one that `rn_jax.deepen` can make of theirs.
    """
    source = os.path.expanduser(str(config.init_from))
    model = None
    if _is_run(source):
        size = sum(leaf.size for leaf in jax.tree.leaves(state))
        found = read_checkpoint(epath.Path(source), most=_TIMES_OURS * size)
        found = found.get("ema") or found
        if config.init_deepen:
            model = make_model(read_config(epath.Path(source)))
    elif is_saved(source):
        model, found = load(source)
    elif config.init_deepen:
        raise InputError(
            "init_deepen needs an init_from that says what network it is of: a run, a "
            "file of rn_jax.save, or a name of list_weights()."
        )
    else:
        weights, name = read_weights(source), str(config.model)
        fields = {**torch_fields(name, weights), **config.model_kwargs}
        found = from_torch(name, weights, **fields)
    has_head = "head" in found["params"]
    if config.init_deepen:
        found = _deepened(model, found, config)
    parts = {
        name: _replaced(
            getattr(state, name), found.get(name, {}), source, config, has_head
        )
        for name in ("params", "batch_stats")
    }
    ema = jax.tree.map(jax.numpy.copy, parts) if state.ema else {}
    return state.replace(**parts, ema=ema)


def check(source: str) -> None:
    """Check that `init_from` names a run or a file, without reading it.

    The contents of a file, and names on the Hugging Face Hub, are not checked.

    Raises:
        InputError: there is no such file, or the folder is not a run with a checkpoint.
    """
    source = os.path.expanduser(source)
    if _is_run(source):
        return
    if not (is_hub_name(source) or is_saved(source) or os.path.isfile(source)):
        raise InputError(f"There is no file {source}.")


def _is_run(source):
    """Return whether a path is a folder, which must then be a run's."""
    filesystem.check(source)
    folder = epath.Path(source)
    try:
        if not folder.is_dir():
            return False
    except OSError as error:  # a long name, or a bucket that does not answer
        raise InputError(f"init_from {source} cannot be read: {error}.") from None
    if not (folder / "config.json").exists():
        raise InputError(f"init_from {folder} is not the folder of a run.")
    if not (folder / "checkpoints").exists():
        raise InputError(f"init_from {folder} has no checkpoint yet.")
    return True


def _deepened(model, found, config):
    """Return the variables of a model, deepened to the network of the config."""
    ours = make_model(config)
    if why := cannot_deepen(ours):
        raise InputError(why)
    variables = {name: found[name] for name in ("params", "batch_stats")}
    key = jax.random.key(config.seed)
    deeper, grown = deepen(model, variables, ours.stage_sizes, key=key)
    for field in ("block", "block_kwargs", "shortcut", "stem", "norm", "activation"):
        theirs, here = getattr(deeper, field), getattr(ours, field)
        if theirs != here:
            raise InputError(
                f"init_deepen needs the {field} of init_from, {theirs}, not {here}."
            )
    if deeper.stochastic_depth != ours.stochastic_depth:
        _logger.warning(
            "The survival probabilities of this run are not those of init_from, so its "
            "error at the start is another; rn_jax.deepen lists the same ones."
        )
    return grown


def _replaced(new, old, source, config, has_head):
    """Return the tree `new` with the leaves of `old`, except those of heads.

    With `init_deepen` heads are no exception.
    """
    new = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(new))
    old = flax.traverse_util.flatten_dict(old)
    for kernel in (kernels := other_channels(new, old)):
        channels, before = new[kernel].shape[2], old[kernel].shape[2]
        theirs = f"init_from {source} expects {before} channels"
        if 1 not in (channels, before):
            raise InputError(
                f"{theirs}, but {config.dataset} has {channels}: name weights for "
                f"{channels} channels, or for greyscale images."
            )
        if kernel == kernels[0]:
            told = "%s; its first convolution is adapted to %d."
            _logger.warning(told, theirs, channels)
        old[kernel] = kernel_for_channels(np.asarray(old[kernel], np.float32), channels)
    for path, leaf in new.items():
        is_head = path[0] == "head" or path[0].startswith("aux")
        if is_head and not config.init_deepen:
            continue
        there = old.get(path)
        if there is None and path[0].startswith("fc") and not has_head:
            continue
        if there is None or there.shape != leaf.shape:
            has = "is missing" if there is None else f"has shape {list(there.shape)}"
            raise InputError(
                f"init_from {source} is not a {config.model} with these settings: "
                f"{'/'.join(path)} {has}, expected {list(leaf.shape)}."
            )
        new[path] = jax.numpy.asarray(np.asarray(there), leaf.dtype)
    return flax.traverse_util.unflatten_dict(new)


def other_channels(
    new: Mapping[tuple[str, ...], Any], old: Mapping[tuple[str, ...], Any]
) -> list[tuple[str, ...]]:
    """Return the path of the first convolution if only the images' channels differ.

    It is then the only array with another shape, apart from heads; a fractal network
    has several such convolutions. Return none if all shapes are equal or other arrays
    differ.

    Args:
        new, old: path -> array or its shape, see `flax.traverse_util.flatten_dict`.
    """

    def same_but_channels(a, b):
        return len(a) == len(b) == 4 and a[:2] + a[3:] == b[:2] + b[3:]

    shapes = {
        path: (leaf.shape, old[path].shape)
        for path, leaf in new.items()
        if path in old and not path[0].startswith(("head", "aux"))
    }
    differ = {path: (a, b) for path, (a, b) in shapes.items() if a != b}
    return list(differ) if all(same_but_channels(*d) for d in differ.values()) else []
