# SPDX-License-Identifier: Apache-2.0
"""Weights of PyTorch models: torchvision's, and akamaster's ResNets for CIFAR."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rn_jax.errors import InputError
from rn_jax.models import create_model
from rn_jax.models.resnet import BasicBlock, Bottleneck
from rn_jax.models.trunk import stack, unstack

# Our layer -> theirs, in the stem and the head, and for the parts of a shortcut.
_LAYERS = {"stem_conv": "conv1", "stem_bn": "bn1", "head": "fc"}
_SHORTCUT = {"conv": "downsample.0", "bn": "downsample.1"}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Entries of a state_dict that are not weights.
_IGNORED = "num_batches_tracked"


def from_torch(
    name: str, state_dict: Mapping[str, Any], **fields: Any
) -> dict[str, Any]:
    """The variables of a network from a PyTorch model's weights.

    Reads torchvision's ResNets, wide ResNets and ResNeXts, and, for "resnet20" to
    "resnet1202", akamaster's, whose shortcut is `shortcut="A_centered"` here. The
    number of classes is that of the weights:

        model = create_model("resnet50", num_classes=1000)
        logits = model.apply(from_torch("resnet50", weights), images, train=False)

    Args:
        name: of `list_models()`.
        state_dict: name -> tensor or array, as `model.state_dict()` gives it. A prefix
            "module." of every name is dropped.
        **fields: those of the network that decide its shapes, if not as in the table:
            `stage_sizes`, `shortcut`, `stem`.

    Returns:
        {"params": ..., "batch_stats": ...} of arrays in the dtypes of `state_dict`.

    Raises:
        InputError: unknown name, or one without a PyTorch counterpart; weights missing,
            left over, or of another shape.
    """
    weights = {
        key.removeprefix("module."): _array(value)
        for key, value in state_dict.items()
        if not key.endswith(_IGNORED)
    }
    head = "linear" if "linear.weight" in weights else "fc"
    if f"{head}.weight" not in weights:
        raise InputError(
            f"The weights for {name} have no classifier named fc or linear."
        )
    classes = len(weights[f"{head}.weight"])
    model = create_model(name, **{"num_classes": classes, **fields})
    if model.block not in (BasicBlock, Bottleneck):
        raise InputError(f"No PyTorch project is known here that has {name}.")
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda x: model.init(key, x, train=False), image)
    shapes = jax.eval_shape(unstack, shapes)

    def take(path, leaf):
        theirs = _their_name([part.key for part in path][1:], head)
        if theirs not in weights:
            raise InputError(f"The weights for {name} lack {theirs}.")
        value = weights.pop(theirs)
        if path[-1].key == "kernel":  # O, I, h, w -> h, w, I, O
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        if value.shape != leaf.shape:
            raise InputError(
                f"{theirs} has shape {value.shape} in our layout, but {name} needs "
                f"{leaf.shape}."
            )
        return value

    variables = jax.tree_util.tree_map_with_path(take, shapes)
    if weights:
        raise InputError(
            f"{name} has no place for {', '.join(sorted(weights)[:3])}"
            f"{' and more' if len(weights) > 3 else ''}."
        )
    return stack(variables, model)


def _their_name(path: list[str], head: str) -> str:
    """Path of a leaf in the unstacked layout -> its name in the state_dict."""
    leaf = _LEAVES[path[-1]]
    if path[0] == "head":
        return f"{head}.{leaf}"
    if path[0] in _LAYERS:
        return f"{_LAYERS[path[0]]}.{leaf}"
    stage, block = (int(re.search(r"\d+$", part).group()) for part in path[:2])
    layer = _SHORTCUT[path[3]] if path[2] == "shortcut" else path[2]
    return f"layer{stage}.{block - 1}.{layer}.{leaf}"


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, wherever it is
        value = value.detach().cpu().numpy()
    return np.array(value)  # a copy: the tensor may go on training


def read_weights(path: str | Path) -> dict[str, Any]:
    """A file of weights, read without running any code that it may hold.

    Args:
        path: .safetensors (needs the package safetensors), or .pt, .pth, .th or .bin
            (needs torch). A dict with the entry "state_dict" gives that entry.

    Raises:
        InputError: no such file; another kind of file; one that is damaged or holds
            more than weights; a package that is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    if path.suffix not in (".safetensors", ".pt", ".pth", ".th", ".bin"):
        raise InputError(
            f"{path.name} is neither .safetensors nor one of PyTorch's .pt, .pth, .th "
            "and .bin."
        )
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    try:
        content = read(path)
    except ModuleNotFoundError as error:
        raise InputError(
            f"Reading {path.name} needs the package {error.name}."
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds no weights by name.")
    return content.get("state_dict", content)


def _read_safetensors(path):
    import safetensors
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a file of safetensors.") from error


def _read_torch(path):
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read as weights alone; it is damaged or holds other "
            "Python objects."
        ) from error
