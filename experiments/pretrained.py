# SPDX-License-Identifier: Apache-2.0
"""Training that starts from the weights of another run, or from a file of weights."""

import os
from collections.abc import Mapping
from typing import Any

import flax
import flax.serialization
import jax
import numpy as np
from etils import epath

from rn_jax.checkpoint import Checkpoints
from rn_jax.errors import InputError
from rn_jax.interop import from_torch, read_weights, torch_fields
from rn_jax.interop.hub import is_hub_name
from rn_jax.train import TrainState
from rn_jax.weights import is_saved, load


def initialise(state: TrainState, config: Mapping[str, Any]) -> TrainState:
    """The state before the first step, with the weights that `init_from` names.

    Parameters and BatchNorm's statistics are taken over, but for the classifier, the
    layers named "head" and those of auxiliary heads, which stay as they are: new. The
    optimiser begins afresh.

    Args:
        state: of a new network.
        config: of the run; its `init_from` is the folder of a run, of which the last
            checkpoint is taken, a name of `list_weights()`, a file of `rn_jax.save`,
            or one of PyTorch projects that `interop.read_weights` reads.

    Raises:
        InputError: nothing there, or weights of another network.
    """
    source = config["init_from"]
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    is_run = _is_run(source)
    found = _of_run(epath.Path(source), size) if is_run else _of_file(source, config)
    parts = {
        name: _replaced(getattr(state, name), found.get(name, {}), source, config)
        for name in ("params", "batch_stats")
    }
    return state.replace(**parts)


def check(source: str) -> None:
    """Looks whether `init_from` names a run or a file, and reads nothing.

    What a file holds, and names of the Hugging Face Hub, are not looked at.

    Raises:
        InputError: nothing there, or a folder that is no run with a checkpoint.
    """
    if _is_run(source):
        return
    if not (is_hub_name(source) or is_saved(source) or os.path.isfile(source)):
        raise InputError(f"There is no file {source}.")


def _is_run(source):
    """Whether it is a folder, which is then that of a run."""
    folder = epath.Path(source)
    try:
        if not folder.is_dir():
            return False
    except OSError as error:  # a name too long, a bucket that does not answer
        raise InputError(f"init_from {source} cannot be read: {error}.") from None
    if not (folder / "config.json").exists():
        raise InputError(f"init_from {folder} is not the folder of a run.")
    if not (folder / "checkpoints").exists():
        raise InputError(f"init_from {folder} has no checkpoint yet.")
    return True


# Times as many numbers as ours another run's state may have: its head may be larger.
_TIMES_OURS = 16


def _of_run(folder, size):
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    step = checkpoints.latest_step()
    try:
        if step is None:
            raise InputError(f"init_from {folder} has no checkpoint yet.")
        return checkpoints.read(step, most=_TIMES_OURS * size)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes a reader raise
        raise InputError(
            f"init_from {folder}: its checkpoint of step {step} is damaged."
        ) from error
    finally:
        checkpoints.close()


def _of_file(file, config):
    if is_saved(file):
        return load(file)[1]
    weights = read_weights(file)
    fields = {**torch_fields(config["model"], weights), **config["model_kwargs"]}
    return from_torch(config["model"], weights, **fields)


def _replaced(new, old, source, config):
    """The tree `new` with the leaves of `old` but for those of the heads."""
    new = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(new))
    old = flax.traverse_util.flatten_dict(old)
    for path, leaf in new.items():
        if path[0] == "head" or path[0].startswith("aux"):
            continue
        there = old.get(path)
        if there is None or there.shape != leaf.shape:
            has = "none" if there is None else f"one of {list(there.shape)}"
            raise InputError(
                f"init_from {source} is not a {config['model']} with these settings: "
                f"it has {has} for the {list(leaf.shape)} of {'/'.join(path)}."
            )
        new[path] = jax.numpy.asarray(np.asarray(there), leaf.dtype)
    return flax.traverse_util.unflatten_dict(new)
