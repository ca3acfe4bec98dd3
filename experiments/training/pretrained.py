# SPDX-License-Identifier: Apache-2.0
"""Training that starts from the weights of another run, or from a file of weights."""

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
from rn_jax import filesystem
from rn_jax.checkpoint import Checkpoints
from rn_jax.errors import InputError
from rn_jax.interop import from_torch, read_weights, torch_fields
from rn_jax.train import TrainState
from rn_jax.weight_files import is_hub_name
from rn_jax.weights import is_saved, load

_logger = logging.getLogger(__name__)


def initialise(state: TrainState, config: Config) -> TrainState:
    """The state before the first step, with the weights that `init_from` names.

    Parameters and BatchNorm's statistics are taken over, but for the classifier, the
    layers named "head" and those of auxiliary heads, which stay as they are: new. So do
    the fully connected layers before it, if the weights have neither. The optimiser
    begins afresh.

    If one network reads grey images and the other images of n channels, the kernel of
    the first convolution is adapted, and a warning is logged: it is summed over the
    channels for grey images (as in timm), or repeated n times and divided by n. Either
    way an image whose channels are equal gives the same features.

    Args:
        state: of a new network.
        config: of the run; its `init_from` is the folder of a run, of which the last
            checkpoint is taken, a name of `list_weights()`, a file of `rn_jax.save`,
            or one of PyTorch projects that `interop.read_weights` reads. A path may
            begin with "~".

    Raises:
        InputError: nothing there, or weights of another network.
    """
    source = os.path.expanduser(str(config.init_from))
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    is_run = _is_run(source)
    found = _of_run(epath.Path(source), size) if is_run else _of_file(source, config)
    has_head = "head" in found["params"]
    parts = {
        name: _replaced(
            getattr(state, name), found.get(name, {}), source, config, has_head
        )
        for name in ("params", "batch_stats")
    }
    return state.replace(**parts)


def check(source: str) -> None:
    """Looks whether `init_from` names a run or a file, and reads nothing.

    What a file holds, and names of the Hugging Face Hub, are not looked at.

    Raises:
        InputError: nothing there, or a folder that is no run with a checkpoint.
    """
    source = os.path.expanduser(source)
    if _is_run(source):
        return
    if not (is_hub_name(source) or is_saved(source) or os.path.isfile(source)):
        raise InputError(f"There is no file {source}.")


def _is_run(source):
    """Whether it is a folder, which is then that of a run."""
    filesystem.check(source)
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
    fields = {**torch_fields(config.model, weights), **config.model_kwargs}
    return from_torch(config.model, weights, **fields)


def _replaced(new, old, source, config, has_head):
    """The tree `new` with the leaves of `old` but for those of the heads."""
    new = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(new))
    old = flax.traverse_util.flatten_dict(old)
    if stem := other_channels(new, old):
        channels = new[stem].shape[2]
        told = f"init_from {source}: its images have {old[stem].shape[2]} channels"
        if 1 not in (channels, old[stem].shape[2]):
            raise InputError(
                f"{told}, those of {config.dataset} {channels}: name weights of as "
                "many channels, or of grey images."
            )
        _logger.warning("%s; its first convolution is adapted to %d.", told, channels)
        kernel = np.asarray(old[stem], np.float32).sum(2, keepdims=True)
        old[stem] = kernel.repeat(channels, 2) / channels
    for path, leaf in new.items():
        if path[0] == "head" or path[0].startswith("aux"):
            continue
        there = old.get(path)
        if there is None and path[0].startswith("fc") and not has_head:
            continue
        if there is None or there.shape != leaf.shape:
            has = "none" if there is None else f"one of {list(there.shape)}"
            raise InputError(
                f"init_from {source} is not a {config.model} with these settings: "
                f"it has {has} for the {list(leaf.shape)} of {'/'.join(path)}."
            )
        new[path] = jax.numpy.asarray(np.asarray(there), leaf.dtype)
    return flax.traverse_util.unflatten_dict(new)


def other_channels(
    new: Mapping[tuple[str, ...], Any], old: Mapping[tuple[str, ...], Any]
) -> tuple[str, ...] | None:
    """The path of the first convolution, if the two differ in the images' channels.

    It is then the only array of another shape, heads aside. None, if they are equal in
    shape or differ otherwise.

    Args:
        new, old: path -> array or its shape, as `flax.traverse_util.flatten_dict` gives
            them.
    """
    shapes = {
        path: (leaf.shape, old[path].shape)
        for path, leaf in new.items()
        if path in old and not path[0].startswith(("head", "aux"))
    }
    differ = {path: (a, b) for path, (a, b) in shapes.items() if a != b}
    if len(differ) != 1:
        return None
    [(path, (a, b))] = differ.items()
    same_but_channels = len(a) == len(b) == 4 and a[:2] + a[3:] == b[:2] + b[3:]
    return path if same_but_channels else None
