# SPDX-License-Identifier: Apache-2.0
"""Weights from and to PyTorch: torchvision, timm and akamaster's project."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rn_jax.errors import InputError
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
from rn_jax.weight_files import DTYPES, as_array, find_entry, some
from rn_jax.weight_files import read_weights as read_weights  # its old place

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Names in a state_dict that are not weights: PyTorch's counters and thop's results.
_IGNORED = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
# Prefixes that wrappers add to every name: DataParallel, torch.compile, Lightning, ...
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")
_FLOATS = tuple(DTYPES[name] for name in ("F16", "BF16", "F32", "F64"))
_logger = logging.getLogger(__name__)


def from_torch(
    name: str, state_dict: Mapping[str, Any], **fields: Any
) -> dict[str, Any]:
    """Convert a PyTorch model's weights to the variables of a network.

    The weights may be torchvision's, timm's of the same names (ResNet, wide ResNet,
    ResNeXt, DenseNet, VGG), timm's pre-activation networks (resnetv2_50) or, for
    "resnet20" to "resnet1202", akamaster's, whose shortcut is `shortcut="A_centered"`
    here. The weights determine the number of classes and of the images' channels:

        model = create_model("resnet50", num_classes=1000)
        logits = model.apply(from_torch("resnet50", weights), images, train=False)

    Weights without a classifier, also those of `model.features` alone, belong to a
    network with `num_classes=None`. If they include the fully connected layers of VGG
    or AlexNet before the classifier, these are returned as well.

    torchvision's trained GoogLeNet has no auxiliary heads, so it needs
    `aux_heads=False`, and expects images with mean 0.5 and deviation 0.5 in every
    channel: its `transform_input` makes them from the usual ones.

    Args:
        name: a name of `list_models()`.
        state_dict: tensors or arrays by name, as `model.state_dict()` returns them, or
            a checkpoint with such a dict in a usual entry ("state_dict", "model"; of
            two, the averaged weights are used). Prefixes that wrappers add to every
            name ("module.", "_orig_mod.", "model.", "backbone.", "encoder.") are
            removed, and a warning is logged.
        **fields: fields that determine the network's shapes, if they differ from the
            table: `stage_sizes`, `shortcut`, `stem`, `aux_heads`.

    Returns:
        Collections "params" and "batch_stats" of arrays. float64 stays float64; other
        dtypes become float32, which represents float16 and bfloat16 exactly.

    Raises:
        InputError: the name is unknown or has no PyTorch counterpart; weights are
            missing, left over, of another shape, or not floating-point.
    """
    model = create_model(name, **fields)
    layout = _layout(model, name)
    weights, prefix = _without_prefixes(find_entry(state_dict))
    if prefix:
        _logger.warning("Removed the prefix %r from all names of the weights.", prefix)
    weights = {_current(k, layout): _floats(k, value) for k, value in weights.items()}
    if layout.stem.startswith("features.") and not _under("features", weights):
        weights = {f"features.{k}": value for k, value in weights.items()}
    head, classes = _classifier(name, weights, layout)
    if head is None:  # then GoogLeNet's auxiliary classifiers are useless too
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

    missing, unfit = [], []

    def take(path, leaf):
        module, kind, theirs = layout.names(path, model, head)
        theirs = f"{theirs}.{_LEAVES[kind]}"
        if theirs not in weights:
            missing.append(theirs)
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
        "missing": missing,
        "left over": sorted(weights),
        "of another shape in our layout": unfit,
    }
    if parts := [f"{how} {some(keys)}" for how, keys in different.items() if keys]:
        raise InputError(f"The weights do not fit {name}: {'; '.join(parts)}.")
    return stack(variables, model)


def _floats(name, value):
    """Return a copy as float64 if it is float64, else as float32."""
    array = as_array(name, value, _FLOATS)
    return array.astype(np.float64 if array.itemsize == 8 else np.float32)


def _classifier(name, weights, layout):
    """Return the classifier's name in these weights, or None, and the class count.

    For weights with fully connected layers but no classifier, the count is 1, with
    which a network has such layers.
    """
    head = next((h for h in layout.heads if _under(h, weights)), None)
    if head is None:
        return None, 1 if _under("classifier", weights) else None
    if not np.ndim(weights.get(f"{head}.weight", 0)):
        raise InputError(
            f"The weights for {name} have no classifier named "
            f"{' or '.join(layout.heads)}, but {some(_under(head, weights))}."
        )
    return head, len(weights[f"{head}.weight"])


def _under(module, weights):
    return [key for key in weights if key.startswith(f"{module}.")]


def to_torch(model: Network, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert the variables of a network to a PyTorch model's weights.

    This is the inverse of `from_torch`. The names are torchvision's, timm's for its
    resnetv2, and akamaster's for ResNets with the small stem:

        weights = to_torch(rn_jax.create_model("resnet50"), variables)
        peer.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})

    Args:
        model: the network of the variables.
        variables: collections "params" and "batch_stats", stacked or not.

    Returns:
        Arrays by name, for `torch.from_numpy`: copies with the dtypes of `variables`,
        except float32 for bfloat16. PyTorch's counts of batches are 0.

    Raises:
        InputError: the network has no PyTorch counterpart, or one that computes
            something else with the same weights.
    """
    layout = _layout(model, f"such a {type(model).__name__}")
    if not layout.computes(model):
        raise InputError(
            f"The PyTorch project's {type(model).__name__} with these weights computes "
            "something else: ResNets need shortcut B (B_linear in resnetv2) and the "
            "stride on the 3x3, those for CIFAR basic blocks and A_centered, and "
            "GoogLeNet torchvision's windows."
        )
    settings = model.stochastic_depth
    if settings and (eval_gates(settings, model.num_blocks) != 1).any():
        raise InputError(
            "At test time this network multiplies each branch by its survival "
            "probability, which no PyTorch project does; to convert the weights alone, "
            "pass model.clone(stochastic_depth=None)."
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
    """Return a copy that PyTorch may write to, with a dtype that PyTorch knows."""
    value = np.asarray(leaf)
    no_numpy = value.dtype == jnp.bfloat16
    return value.astype(np.float32 if no_numpy else value.dtype.newbyteorder("="))


def torch_fields(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields in which the network of such weights differs from the table's.

    `create_model(name, **torch_fields(name, weights))` computes what the PyTorch model
    does: akamaster's ResNets for CIFAR have shortcut A with zeros on both sides, and
    torchvision's trained GoogLeNet has no auxiliary heads.

    Args:
        name: a name of `list_models()`.
        state_dict: see `from_torch`.

    Raises:
        InputError: the name is unknown.
    """
    model = create_model(name)
    if isinstance(model, ResNet) and model.stem == "small" and model.shortcut == "A":
        return {"shortcut": "A_centered"}
    if isinstance(model, GoogLeNet):
        return {"aux_heads": any("aux" in key for key in find_entry(state_dict))}
    return {}


def _without_prefixes(weights):
    """Return the weights without the prefix of all names, and that prefix."""
    removed = ""
    weights = {k: v for k, v in weights.items() if k.split(".")[-1] not in _IGNORED}

    def found():
        return next((p for p in _PREFIXES if all(k.startswith(p) for k in weights)), "")

    while weights and (prefix := found()):
        weights = {k.removeprefix(prefix): value for k, value in weights.items()}
        removed += prefix
    return weights, removed


def _current(key, layout):
    """Return torchvision's current name for timm's and for that of old files."""
    # timm's features_only=True replaces the first dot by an underscore.
    key = re.sub(r"^(features|stem|stages)_", r"\1.", key)
    module, _, leaf = key.rpartition(".")
    if module in layout.aliases:
        return f"{layout.aliases[module]}.{leaf}"
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)


def _kernel(value, ndim, channels):
    """Convert OIhw -> hwIO or (hwI, O); (O, Chw) -> (hwC, O); (O, I) -> (I, O)."""
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
        return value if ndim == 4 else value.reshape(-1, value.shape[-1])
    if value.ndim < 2 or not value.size:
        return value  # the shape does not fit, which is reported later
    if channels and value.shape[1] % channels == 0:
        value = value.reshape(len(value), channels, -1).swapaxes(1, 2)
    return value.reshape(len(value), -1).T


def _weight(value, channels):
    """Invert `_kernel`."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    value = value.T
    if channels:
        value = value.reshape(len(value), -1, channels).swapaxes(1, 2)
    return value.reshape(len(value), -1)


# --- Names of our modules, as paths in the unstacked layout, and of theirs ------------


@dataclass(frozen=True)
class _Layout:
    """How PyTorch projects name the modules of a family.

    Attributes:
        heads: their names of the classifier.
        stem: their name of the convolution that reads the images.
        module: (our path, network) -> their name.
        has: network -> whether theirs has weights of the same shapes.
        computes: network -> whether theirs also computes the same.
        flattened: network -> our layers that follow a flattened map, with the number of
            channels of that map.
        convolves: whether their classifier is a 1x1 convolution.
        aliases: another project's names of modules -> their names.
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
        """Return a leaf's module and kind here, and its module there."""
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
    return f"layer{_index(stage) + 1}.{_index(block)}.{layer}"


def _resnetv2(path, model):
    ends = {"stem_conv": "stem.conv", "final_bn": "norm"}
    if path in ends:
        return ends[path]
    stage, block, *layer = path.split("/")
    layer = "downsample.conv" if layer[0] == "shortcut" else layer[0]
    layer = layer.replace("bn", "norm")
    return f"stages.{_index(stage)}.blocks.{_index(block)}.{layer}"


def _densenet(path, model):
    ends = {"stem_conv": "conv0", "stem_bn": "norm0", "final_bn": "norm5"}
    if path in ends:
        return f"features.{ends[path]}"
    *place, layer = path.split("/")
    layer = layer.replace("bn", "norm")
    if len(place) == 1:
        return f"features.{place[0]}.{layer}"
    stage, block = (_index(name) + 1 for name in place)
    return f"features.denseblock{stage}.denselayer{block}.{layer}"


def _vgg(path, model):
    """Return the index in a Sequential of convolution, (BatchNorm,) ReLU, ..., pool."""
    classifier = {"fc1": 0, "fc2": 3}
    if path in classifier:
        return f"classifier.{classifier[path]}"
    stage, layer, part = path.split("/")
    index = next(b.index for b in model.blocks if b.name == f"{stage}/{layer}")
    place = index * (3 if model.batch_norm else 2) + _index(stage)
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


def _index(name):
    """Return the position of "stage2" or "block07" in its network or stage, from 0."""
    return int(name[5:]) - 1


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
        aliases={  # timm's, whose layers are convolutions
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
        raise InputError(f"No supported PyTorch project has {name}.")
    return layout
