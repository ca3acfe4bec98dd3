# SPDX-License-Identifier: Apache-2.0
"""Weights from and to PyTorch: of torchvision, timm and akamaster's project."""

import argparse
import contextlib
import logging
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rn_jax.errors import InputError
from rn_jax.interop.hub import download, is_hub_name
from rn_jax.models import create_model
from rn_jax.models.alexnet import AlexNet
from rn_jax.models.densenet import DenseNet
from rn_jax.models.googlenet import GoogLeNet
from rn_jax.models.network import Network
from rn_jax.models.preact import FullPreactivation
from rn_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from rn_jax.models.trunk import stack, unstack
from rn_jax.models.vgg import VGG
from rn_jax.stochastic_depth import eval_gates

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Entries of a state_dict that are not weights: PyTorch's counters, and thop's results.
_IGNORED = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
# What wrappers put before every name: DataParallel, torch.compile, Lightning, ...
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")
# Under which checkpoints keep their weights; averaged ones first, as timm does.
_ENTRIES = (
    *("state_dict_ema", "model_ema", "state_dict", "model_state_dict"),
    *("model", "net", "network"),
)
# The dtypes of safetensors that are read. NumPy has no bfloat16 of its own.
DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": jnp.dtype(jnp.bfloat16),
}
_FLOATS = tuple(DTYPES[name] for name in ("F16", "BF16", "F32", "F64"))
_logger = logging.getLogger(__name__)


def from_torch(
    name: str, state_dict: Mapping[str, Any], **fields: Any
) -> dict[str, Any]:
    """The variables of a network from a PyTorch model's weights.

    Reads torchvision's networks under torchvision's names, timm's of the same names
    (ResNet, wide ResNet, ResNeXt, DenseNet, VGG) and its pre-activation networks
    (resnetv2_50), and, for "resnet20" to "resnet1202", akamaster's, whose shortcut is
    `shortcut="A_centered"` here. The number of classes and of the images' channels are
    those of the weights:

        model = create_model("resnet50", num_classes=1000)
        logits = model.apply(from_torch("resnet50", weights), images, train=False)

    Weights without a classifier, also those of `model.features` alone, are those of a
    network with `num_classes=None`. If they have the fully connected layers of VGG or
    AlexNet that come before the classifier, these are returned as well.

    torchvision's trained GoogLeNet comes without auxiliary heads, for which `aux_heads`
    is False, and takes images of mean 0.5 and deviation 0.5 in every channel: its
    `transform_input` makes them from the usual ones.

    Args:
        name: of `list_models()`.
        state_dict: name -> tensor or array, as `model.state_dict()` gives it, or a
            checkpoint that has such a dict in a usual entry ("state_dict", "model"; of
            two, the averaged weights are taken). Prefixes that wrappers give to every
            name ("module.", "_orig_mod.", "model.", "backbone.", "encoder.") are
            removed, and a warning is logged.
        **fields: those of the network that decide its shapes, if not as in the table:
            `stage_sizes`, `shortcut`, `stem`, `aux_heads`.

    Returns:
        Collections "params" and "batch_stats" of arrays. float64 stays float64; all
        else becomes float32, which holds float16 and bfloat16 exactly.

    Raises:
        InputError: unknown name, or one without a PyTorch counterpart; weights missing,
            left over, of another shape, or not floating-point.
    """
    model = create_model(name, **fields)
    layout = _layout(model, name)
    weights, prefix = _without_prefixes(_entry(state_dict))
    if prefix:
        _logger.warning("All names of the weights began with %r: removed.", prefix)
    weights = {_current(k, layout): _array(k, value) for k, value in weights.items()}
    if layout.stem.startswith("features.") and not _under("features", weights):
        weights = {f"features.{k}": value for k, value in weights.items()}
    head, classes = _classifier(name, weights, layout)
    if head is None:  # nor any use for GoogLeNet's auxiliary classifiers
        weights = {k: v for k, v in weights.items() if not k.startswith("aux")}
    stem = weights.get(f"{layout.stem}.weight")
    channels = stem.shape[1] if stem is not None and stem.ndim == 4 else 3
    model = create_model(name, **{"num_classes": classes, **fields})
    image = jax.ShapeDtypeStruct((1, 64, 64, channels or 3), jnp.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda x: model.init(key, x, train=False), image)
    shapes = jax.eval_shape(unstack, shapes)
    if head is None:
        shapes["params"].pop("head", None)

    lacking, unfit = [], []

    def take(path, leaf):
        module, kind, theirs = layout.names(path, model, head)
        theirs = f"{theirs}.{_LEAVES[kind]}"
        if theirs not in weights:
            lacking.append(theirs)
            return leaf
        value = weights.pop(theirs)
        if kind == "kernel":
            flattened = layout.flattened(model).get(module)
            value = _kernel(value, leaf.ndim, flattened)
        if value.shape != leaf.shape:
            unfit.append(f"{theirs}, {value.shape} instead of {leaf.shape}")
        return value

    variables = jax.tree_util.tree_map_with_path(take, shapes)
    different = {
        "lacking": lacking,
        "left over": sorted(weights),
        "of another shape in our layout": unfit,
    }
    if told := [f"{how} {_some(keys)}" for how, keys in different.items() if keys]:
        raise InputError(f"The weights do not fit {name}: {'; '.join(told)}.")
    return stack(variables, model)


def _classifier(name, weights, layout):
    """The classifier's name in these weights, or None, and the number of classes.

    With fully connected layers but no classifier, the latter is that of any network
    that has such layers, 1.
    """
    head = next((h for h in layout.heads if _under(h, weights)), None)
    if head is None:
        return None, 1 if _under("classifier", weights) else None
    if not np.ndim(weights.get(f"{head}.weight", 0)):
        raise InputError(
            f"The weights for {name} have no classifier named "
            f"{' or '.join(layout.heads)}, but {_some(_under(head, weights))}."
        )
    return head, len(weights[f"{head}.weight"])


def _under(module, weights):
    return [key for key in weights if key.startswith(f"{module}.")]


def _some(names):
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def to_torch(model: Network, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A PyTorch model's weights from the variables of a network: `from_torch` undone.

    The names are torchvision's, timm's for its resnetv2, and akamaster's for ResNets
    with the small stem:

        weights = to_torch(rn_jax.create_model("resnet50"), variables)
        peer.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})

    Args:
        model: that the variables belong to.
        variables: collections "params" and "batch_stats", stacked or not.

    Returns:
        Name -> array, as `torch.from_numpy` takes it: of its own memory, and in the
        dtypes of `variables`, but float32 for bfloat16. PyTorch's counts of batches,
        which nothing here has, are 0.

    Raises:
        InputError: a network without a PyTorch counterpart, or whose counterpart
            computes something else with the same weights.
    """
    layout = _layout(model, f"such a {type(model).__name__}")
    if not layout.computes(model):
        raise InputError(
            f"The PyTorch project's {type(model).__name__} with these weights computes "
            "something else: it has shortcut B (B_linear in resnetv2) and the "
            "stride on the 3x3, or for CIFAR basic blocks and A_centered, and "
            "GoogLeNet torchvision's windows."
        )
    settings = model.stochastic_depth
    if settings and (eval_gates(settings, model.num_blocks) != 1).any():
        raise InputError(
            "At test this network multiplies each branch by its survival probability, "
            "which no PyTorch project does: its weights alone, for a network that "
            "computes otherwise, are those of model.clone(stochastic_depth=None)."
        )
    head = layout.heads[-1 if getattr(model, "stem", None) == "small" else 0]
    weights = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(unstack(variables)):
        module, kind, theirs = layout.names(path, model, head)
        value = _native(leaf)
        if kind == "kernel":
            value = _weight(value, layout.flattened(model).get(module))
            if module == "head" and layout.convolves:
                value = value[..., None, None]
        weights[f"{theirs}.{_LEAVES[kind]}"] = np.asarray(value, order="C")
        if kind == "mean":
            weights[f"{theirs}.num_batches_tracked"] = np.zeros((), np.int64)
    return weights


def _native(leaf):
    """A copy, which PyTorch may write to, of a dtype that PyTorch knows."""
    value = np.asarray(leaf)
    no_numpy = value.dtype == jnp.bfloat16
    return value.astype(np.float32 if no_numpy else value.dtype.newbyteorder("="))


def torch_fields(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Fields in which the network that such weights belong to differs from the table's.

    `create_model(name, **torch_fields(name, weights))` computes what the PyTorch model
    does: akamaster's ResNets for CIFAR have shortcut A with zeros on both sides, and
    torchvision's trained GoogLeNet comes without auxiliary heads.

    Args:
        name: of `list_models()`.
        state_dict: as `from_torch` takes it.

    Raises:
        InputError: unknown name.
    """
    model = create_model(name)
    if isinstance(model, ResNet) and model.stem == "small" and model.shortcut == "A":
        return {"shortcut": "A_centered"}
    if isinstance(model, GoogLeNet):
        return {"aux_heads": any("aux" in key for key in _entry(state_dict))}
    return {}


def _entry(content: Any) -> Mapping[str, Any]:
    """The names and tensors of a checkpoint, which may be one of its entries.

    Raises:
        InputError: it is no dict, or its keys are no names.
    """
    for _ in range(3):  # entries in entries; a crafted file may hold itself
        if not isinstance(content, Mapping) or not all(
            isinstance(key, str) for key in content
        ):
            raise InputError(
                "Weights are tensors by name, as model.state_dict() gives them, not a "
                f"{type(content).__name__}."
            )
        entries = [e for e in _ENTRIES if isinstance(content.get(e), Mapping)]
        entries = [e for e in entries if content[e]]
        if not entries:
            break
        if len(entries) > 1:
            _logger.warning("Of %s, the first is taken.", " and ".join(entries))
        content = content[entries[0]]
    return content


def _without_prefixes(weights):
    """The weights without what stands before all names, and that prefix."""
    taken = ""
    weights = {k: v for k, v in weights.items() if k.split(".")[-1] not in _IGNORED}

    def found():
        return next((p for p in _PREFIXES if all(k.startswith(p) for k in weights)), "")

    while weights and (prefix := found()):
        weights = {k.removeprefix(prefix): value for k, value in weights.items()}
        taken += prefix
    return weights, taken


def _current(key, layout):
    """torchvision's name of today for timm's and that of old files."""
    # timm's features_only=True turns the first point into a line.
    key = re.sub(r"^(features|stem|stages)_", r"\1.", key)
    module, _, leaf = key.rpartition(".")
    if module in layout.aliases:
        return f"{layout.aliases[module]}.{leaf}"
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)


def _kernel(value, ndim, channels):
    """OIhw -> hwIO or hwI, O; O, Chw -> hwC, O after a flattened map; O, I -> I, O."""
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
        return value if ndim == 4 else value.reshape(-1, value.shape[-1])
    if value.ndim < 2 or not value.size:
        return value  # whose shape does not fit
    if channels and value.shape[1] % channels == 0:
        value = value.reshape(len(value), channels, -1).swapaxes(1, 2)
    return value.reshape(len(value), -1).T


def _weight(value, channels):
    """The inverse of `_kernel`."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    value = value.T
    if channels:
        value = value.reshape(len(value), -1, channels).swapaxes(1, 2)
    return value.reshape(len(value), -1)


# --- Our modules, as paths in the unstacked layout, and theirs ------------------------


@dataclass(frozen=True)
class _Layout:
    """How PyTorch projects name the modules of a family.

    Attributes:
        heads: their names of the classifier.
        module: (path of ours, network) -> theirs.
        has: which networks of the family have weights of the same shapes there.
        computes: which of these also compute the same there.
        stem: their name of the convolution that reads the images.
        flattened: network -> our layers that follow a flattened map, with the channels
            of that map.
        convolves: their classifier is a 1x1 convolution.
        aliases: another project's names of modules -> theirs.
    """

    heads: tuple[str, ...]
    stem: str
    module: Callable[[str, Network], str]
    has: Callable[[Network], bool]
    computes: Callable[[Network], bool] = lambda model: True
    flattened: Callable[[Network], Mapping[str, int]] = lambda model: {}
    convolves: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)

    def names(self, path, model: Network, head: str) -> tuple[str, str, str]:
        """Our module and kind of a leaf at that path of the tree, and their module.

        `head` is their name of the classifier.
        """
        *modules, kind = [part.key for part in path][1:]
        module = "/".join(modules)
        return module, kind, head if module == "head" else self.module(module, model)


def _resnet(path, model):
    stem = {"stem_conv": "conv1", "stem_bn": "bn1"}
    if path in stem:
        return stem[path]
    stage, block, *layer = path.split("/")
    shortcut = {"conv": "downsample.0", "bn": "downsample.1"}
    layer = shortcut[layer[1]] if layer[0] == "shortcut" else layer[0]
    return f"layer{_number(stage)}.{_number(block) - 1}.{layer}"


def _resnetv2(path, model):
    ends = {"stem_conv": "stem.conv", "final_bn": "norm"}
    if path in ends:
        return ends[path]
    stage, block, *layer = path.split("/")
    layer = "downsample.conv" if layer[0] == "shortcut" else layer[0]
    layer = layer.replace("bn", "norm")
    return f"stages.{_number(stage) - 1}.blocks.{_number(block) - 1}.{layer}"


def _densenet(path, model):
    ends = {"stem_conv": "conv0", "stem_bn": "norm0", "final_bn": "norm5"}
    if path in ends:
        return f"features.{ends[path]}"
    *place, layer = path.split("/")
    layer = layer.replace("bn", "norm")
    if len(place) == 1:
        return f"features.{place[0]}.{layer}"
    stage, number = map(_number, place)
    return f"features.denseblock{stage}.denselayer{number}.{layer}"


def _vgg(path, model):
    """A Sequential of convolution, (BatchNorm,) ReLU, ..., pooling counts its parts."""
    classifier = {"fc1": 0, "fc2": 3}
    if path in classifier:
        return f"classifier.{classifier[path]}"
    stage, layer, part = path.split("/")
    index = next(b.index for b in model.blocks if b.name == f"{stage}/{layer}")
    place = index * (3 if model.batch_norm else 2) + _number(stage) - 1
    return f"features.{place + (part == 'bn')}"


def _alexnet(path, model):
    theirs = {"fc1": "classifier.1", "fc2": "classifier.4"}
    convolutions = zip(range(1, 6), (0, 3, 6, 8, 10), strict=True)
    theirs |= {f"conv{ours}": f"features.{place}" for ours, place in convolutions}
    return theirs[path]


def _googlenet(path, model):
    theirs = {
        "branch2_reduce": "branch2.0",
        "branch2": "branch2.1",
        "branch3_reduce": "branch3.0",
        "branch3": "branch3.1",
        "branch4": "branch4.1",
        "fc": "fc1",
        "head": "fc2",
    }
    return ".".join(theirs.get(part, part) for part in path.split("/"))


def _number(name):
    return int(re.sub(r".*\D", "", name))


_RESNETV2 = _Layout(
    ("head.fc",),
    "stem.conv",
    _resnetv2,
    lambda m: m.block is FullPreactivation and m.stem == "imagenet_linear",
    lambda m: (
        m.shortcut == "B_linear"
        and (
            not m.block_kwargs.get("bottleneck")
            or m.block_kwargs.get("stride_on") == "3x3"
        )
    ),
    convolves=True,
)

_LAYOUTS = {
    ResNet: _Layout(
        ("fc", "linear"),
        "conv1",
        _resnet,
        lambda m: m.block in (BasicBlock, Bottleneck),
        lambda m: (
            m.shortcut == "B" and m.block_kwargs.get("stride_on", "3x3") == "3x3"
            if m.stem == "imagenet"
            else m.shortcut == "A_centered" and m.block is BasicBlock
        ),
    ),
    DenseNet: _Layout(
        ("classifier",), "features.conv0", _densenet, lambda m: m.stem == "imagenet"
    ),
    VGG: _Layout(
        ("classifier.6",),
        "features.0",
        _vgg,
        lambda m: m.stem == "imagenet",
        flattened=lambda m: {"fc1": m.features[-1]},
        aliases={  # timm's, where these layers are convolutions
            "pre_logits.fc1": "classifier.0",
            "pre_logits.fc2": "classifier.3",
            "head.fc": "classifier.6",
        },
    ),
    AlexNet: _Layout(
        ("classifier.6",),
        "features.0",
        _alexnet,
        lambda m: m.towers == 1,
        flattened=lambda m: {"fc1": 256},
    ),
    GoogLeNet: _Layout(
        ("fc",),
        "conv1.conv",
        _googlenet,
        lambda m: m.batch_norm,
        lambda m: (m.large_kernel, m.last_pool) == (3, 2),
        lambda m: {"aux1/fc": 128, "aux2/fc": 128},
    ),
}


def _layout(model, name):
    layout = _LAYOUTS.get(type(model))
    if isinstance(model, ResNet) and model.norm_first:
        layout = _RESNETV2
    if layout is None or not layout.has(model):
        raise InputError(f"No PyTorch project is known here that has {name}.")
    return layout


def _array(name: str, value: Any) -> np.ndarray:
    """A copy of a tensor or array: float64 as it is, others as float32."""
    try:
        if hasattr(value, "detach"):  # a tensor, wherever it is
            value = value.detach().cpu()
            # NumPy has no bfloat16, and PyTorch gives it none.
            value = value.float() if _kind(value) == "torch.bfloat16" else value
        array = np.asarray(value)
    except Exception:
        # A tensor that is quantized, sparse or without data has an error of its own.
        array = np.asarray(None)
    if array.dtype.newbyteorder("=") not in _FLOATS:
        raise InputError(
            f"{name} is of {_kind(value)}: weights are dense tensors of bfloat16, "
            "float16, float32 or float64."
        )
    return array.astype(np.float64 if array.itemsize == 8 else np.float32)


def _kind(value):
    return str(getattr(value, "dtype", type(value).__name__))


def read_weights(path: str | os.PathLike) -> dict[str, Any]:
    """A file of weights, read without running any code that it may hold.

    The tensors together are at most as large as the file, whatever it claims.

    Args:
        path: .safetensors (needs the package safetensors), or .pt, .pth, .th or .bin
            (needs torch). Of a checkpoint with weights in a usual entry, as
            "state_dict" or "model", that entry: see `from_torch`. Or a name of the
            Hugging Face Hub, "hf-hub:timm/resnet18.a1_in1k": see `hub.download`.

    Returns:
        Name -> tensor or array, in the names and dtypes of the file.

    Raises:
        InputError: no such file or name; another kind of file; one that is damaged,
            holds more than weights or claims to hold more than it can; a package that
            is not installed.
    """
    path = os.fspath(path)
    path = download(path) if is_hub_name(path) else Path(os.path.expanduser(path))
    if not os.path.isfile(path):
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder: name a file of weights.")
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
    try:
        content = _entry(content)
    except InputError as error:
        raise InputError(f"{path} holds no weights by name: {error}") from None
    more = [(name, value) for name, value in content.items() if not _is_plain(value)]
    if more:
        told = [f"{name[:100]!r} ({_kind(value)})" for name, value in more]
        raise InputError(
            f"{path} holds more than weights: {_some(told)}; weights are tensors by "
            f"name, alone or in an entry called {', '.join(_ENTRIES)}."
        )
    claimed, there = sum(value.nbytes for value in content.values()), os.stat(path)
    if claimed > there.st_size:
        raise InputError(
            f"{path} claims {claimed:,} bytes of weights, and a file of "
            f"{there.st_size:,} bytes holds at most as many."
        )
    return dict(content)


def _is_plain(value):
    """Whether it is an array, or a tensor of a dtype that NumPy or JAX has."""
    if isinstance(value, np.ndarray):
        return True
    import torch

    if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
        return False
    try:
        torch.empty(0, dtype=value.dtype).numpy()
    except TypeError:  # float8, or quantized
        return value.dtype == torch.bfloat16 and value.layout == torch.strided
    return value.layout == torch.strided


def _read_safetensors(path):
    import safetensors

    try:
        with safetensors.safe_open(path, "numpy"):
            pass  # a header that claims too much is refused before the file is read
        entries = dict(safetensors.deserialize(path.read_bytes()))
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise InputError(f"{path} is not a file of safetensors.") from error
    if unknown := sorted({entry["dtype"] for entry in entries.values()} - set(DTYPES)):
        raise InputError(
            f"{path} is not a file of safetensors that can be read: it has tensors of "
            f"{unknown[0]}, and {', '.join(DTYPES)} can be read."
        )
    return {
        name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in entries.items()
    }


def _read_torch(path):
    import torch

    try:
        _refuse_compressed(path)
        # Many checkpoints hold the options of a command, which cannot run anything.
        allow = getattr(torch.serialization, "safe_globals", contextlib.nullcontext)
        with (
            warnings.catch_warnings(action="ignore"),  # of old pickles
            allow([argparse.Namespace]),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise InputError(
            f"{path} cannot be read as weights alone; it is damaged or holds other "
            "Python objects."
        ) from error


def _refuse_compressed(path):
    """Raises an InputError for a ZIP that is smaller than what it unfolds to."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unfolded = sum(entry.file_size for entry in archive.infolist())
    size = os.stat(path).st_size
    if unfolded > size:
        raise InputError(
            f"{path} unfolds to {unfolded:,} bytes from {size:,}; PyTorch's own files "
            "are not compressed."
        )
