# SPDX-License-Identifier: Apache-2.0
"""Names of the table that stand for others, and networks made narrow."""

import dataclasses
from collections.abc import Mapping
from functools import partial

from rn_jax import create_model, list_models
from rn_jax.models.alexnet import AlexNet
from rn_jax.models.densenet import DenseNet
from rn_jax.models.fractalnet import FractalNet
from rn_jax.models.googlenet import GoogLeNet
from rn_jax.models.highway import HighwayMLP, HighwayNet
from rn_jax.models.inception_resnet import InceptionResNetV2
from rn_jax.models.pyramidnet import PyramidNet
from rn_jax.models.vgg import VGG

# A name for each class of networks.
FAMILIES = {type(create_model(name)): name for name in list_models()}


def one_of_each(names):
    """The first of the names, in order, whose networks are alike but for sizes."""
    found = {}
    for name in names:
        model = create_model(name)
        fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
        found.setdefault(repr((type(model), _without_sizes(fields))), name)
    return list(found.values())


def _without_sizes(value):
    """With integers, which are sizes, replaced by their type."""
    if isinstance(value, partial):
        return value.func, _without_sizes(value.keywords)
    if isinstance(value, Mapping):
        return {key: _without_sizes(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return {repr(_without_sizes(entry)) for entry in value}
    return int if type(value) is int else value


# The other families' fields of a network with few blocks and few channels, or at least
# for small images.
NARROW = {
    AlexNet: {"stem": "small"},
    GoogLeNet: {"stem": "small"},
    DenseNet: {"stage_sizes": (2, 2), "growth_rate": 4, "stem_features": 4},
    PyramidNet: {"stage_sizes": (2, 2), "alpha": 4, "stem_features": 4},
    FractalNet: {"features": (4, 8), "columns": 3},
    InceptionResNetV2: {"stage_sizes": (2, 1, 1), "width": 1 / 16, "stem": "small"},
    HighwayNet: {"stage_sizes": (2, 2), "features": (4, 8), "last_features": 4},
    HighwayMLP: {"depth": 4, "width": 8},
    VGG: {"stage_sizes": (2, 2), "features": (4, 8), "hidden": (32,)},
}


def narrow(name, **fields):
    """The network of that name with two stages, few blocks and few channels."""
    model = create_model(name, num_classes=3)
    if type(model) in NARROW:
        if rates := getattr(model, "conv_dropout", None):
            fields["conv_dropout"] = rates[:2]
        return model.copy(**NARROW[type(model)], **fields)
    bottleneck = model.features[0] != (model.stem_features or model.features[0])
    features = (16, 32) if bottleneck else (4, 8)
    kwargs = dict(model.block_kwargs)
    if "groups" in kwargs:
        kwargs |= {"groups": 2, "base_width": 32}
    if "reduction" in model.block_class.__dataclass_fields__:
        kwargs["reduction"] = 1  # few hidden units could all be dead
    return model.copy(
        stage_sizes=(2, 2),
        features=features,
        stem_features=4 if model.stem_features else None,
        block_kwargs=kwargs,
        **fields,
    )
