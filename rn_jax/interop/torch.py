# SPDX-License-Identifier: Apache-2.0
"""Weights from and to PyTorch: of torchvision, timm and akamaster's project."""

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

    Reads torchvision's networks under torchvision's names, timm's of the same names
    (ResNet, wide ResNet, ResNeXt, DenseNet, VGG) and its pre-activation networks
    (resnetv2_50), and, for "resnet20" to "resnet1202", akamaster's, whose shortcut is
    `shortcut="A_centered"` here. The number of classes is that of the weights:

        model = create_model("resnet50", num_classes=1000)
        logits = model.apply(from_torch("resnet50", weights), images, train=False)

    torchvision's trained GoogLeNet comes without auxiliary heads, for which `aux_heads`
    is False, and takes images of mean 0.5 and deviation 0.5 in every channel: its
    `transform_input` makes them from the usual ones.

    Args:
        name: of `list_models()`.
        state_dict: name -> tensor or array, as `model.state_dict()` gives it. A prefix
            "module." of every name is dropped.
        **fields: those of the network that decide its shapes, if not as in the table:
            `stage_sizes`, `shortcut`, `stem`, `aux_heads`.

    Returns:
        Collections "params" and "batch_stats" of arrays in the dtypes of `state_dict`.

    Raises:
        InputError: unknown name, or one without a PyTorch counterpart; weights missing,
            left over, or of another shape.
    """
    model = create_model(name, **fields)
    layout = _layout(model, name)
    weights = {
        _current(key, layout): _array(value)
        for key, value in state_dict.items()
        if not key.endswith(_IGNORED)
    }
    heads = (h for h in layout.heads if np.ndim(weights.get(f"{h}.weight", 0)))
    if head := next(heads, None):
        classes = len(weights[f"{head}.weight"])
    else:
        raise InputError(
            f"The weights for {name} have no classifier named "
            f"{' or '.join(layout.heads)}."
        )
    model = create_model(name, **{"num_classes": classes, **fields})
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda x: model.init(key, x, train=False), image)
    shapes = jax.eval_shape(unstack, shapes)

    lacking, unfit = [], []

    def take(path, leaf):
        module, kind, theirs = layout.names(path, model, head)
        theirs = f"{theirs}.{_LEAVES[kind]}"
        if theirs not in weights:
            lacking.append(theirs)
            return leaf
        value = weights.pop(theirs)
        if kind == "kernel":
            channels = layout.flattened(model).get(module)
            value = _kernel(value, leaf.ndim, channels)
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
        Name -> array, in the dtypes of `variables`; PyTorch's counts of batches, which
        nothing here has, are 0.

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
    head = layout.heads[-1 if getattr(model, "stem", None) == "small" else 0]
    weights = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(unstack(variables)):
        module, kind, theirs = layout.names(path, model, head)
        value = np.array(leaf)  # a copy, which PyTorch may write to
        if kind == "kernel":
            value = _weight(value, layout.flattened(model).get(module))
            if module == "head" and layout.convolves:
                value = value[..., None, None]
        weights[f"{theirs}.{_LEAVES[kind]}"] = np.asarray(value, order="C")
        if kind == "mean":
            weights[f"{theirs}.{_IGNORED}"] = np.zeros((), np.int64)
    return weights


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
        return {"aux_heads": any("aux" in key for key in state_dict)}
    return {}


def _current(key, layout):
    """torchvision's name of today for timm's, DataParallel's and that of old files."""
    key = key.removeprefix("module.")
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
        flattened: network -> our layers that follow a flattened map, with the channels
            of that map.
        convolves: their classifier is a 1x1 convolution.
        aliases: another project's names of modules -> theirs.
    """

    heads: tuple[str, ...]
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
        _resnet,
        lambda m: m.block in (BasicBlock, Bottleneck),
        lambda m: (
            m.shortcut == "B" and m.block_kwargs.get("stride_on", "3x3") == "3x3"
            if m.stem == "imagenet"
            else m.shortcut == "A_centered" and m.block is BasicBlock
        ),
    ),
    DenseNet: _Layout(("classifier",), _densenet, lambda m: m.stem == "imagenet"),
    VGG: _Layout(
        ("classifier.6",),
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
        _alexnet,
        lambda m: m.towers == 1,
        flattened=lambda m: {"fc1": 256},
    ),
    GoogLeNet: _Layout(
        ("fc",),
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


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, wherever it is
        value = value.detach().cpu().numpy()
    return np.array(value)  # a copy: the tensor may go on training


def read_weights(path: str | Path) -> dict[str, Any]:
    """A file of weights, read without running any code that it may hold.

    The tensors together are at most as large as the file, whatever it claims.

    Args:
        path: .safetensors (needs the package safetensors), or .pt, .pth, .th or .bin
            (needs torch). A dict with the entry "state_dict" gives that entry. Or a
            name of the Hugging Face Hub, "hf-hub:timm/resnet18.a1_in1k": see
            `hub.download`.

    Raises:
        InputError: no such file or name; another kind of file; one that is damaged,
            holds more than weights or claims to hold more than it can; a package that
            is not installed.
    """
    path = download(str(path)) if is_hub_name(path) else Path(path)
    if not os.path.isfile(path):
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
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds no weights by name.")
    for name, value in content.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise InputError(f"{path} holds more than weights: {str(name)[:100]!r}.")
    claimed, there = sum(value.nbytes for value in content.values()), os.stat(path)
    if claimed > there.st_size:
        raise InputError(
            f"{path} claims {claimed:,} bytes of weights, and a file of "
            f"{there.st_size:,} bytes holds at most as many."
        )
    return dict(content)


def _is_plain(value):
    """Whether it is an array, or a tensor that NumPy can take as it is."""
    if isinstance(value, np.ndarray):
        return True
    import torch

    if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
        return False
    try:
        torch.empty(0, dtype=value.dtype).numpy()
    except TypeError:  # bfloat16, or quantized
        return False
    return value.layout == torch.strided


def _read_safetensors(path):
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except Exception as error:  # damaged, or of a dtype that NumPy has not
        raise InputError(f"{path} is not a file of safetensors.") from error


def _read_torch(path):
    import torch

    try:
        _refuse_compressed(path)
        with warnings.catch_warnings(action="ignore"):  # of old pickles
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
