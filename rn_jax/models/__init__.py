# SPDX-License-Identifier: Apache-2.0
"""The table of networks, by the names of their papers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn

from rn_jax.errors import InputError, unknown_name
from rn_jax.models.resnet import PlainLayer, ResNet


@dataclass(frozen=True)
class ModelEntry:
    """One row of the table.

    Attributes:
        build: called with `arguments` and the user's own, gives the network.
        arguments: what makes this network of its family.
        paper: where it comes from.
        params: exact number of parameters with `num_classes` classes.
        num_classes: of the paper's data set.
    """

    build: Callable[..., nn.Module]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    params: int | None = None
    num_classes: int = 10


_HE_2015 = "He et al. 2015, Deep Residual Learning for Image Recognition, section 4.2"

# Depth 6n + 2 -> parameters for 10 classes. Shortcut A has none, so the plain net of
# the same depth is of the same size.
_CIFAR_SIZES = {
    20: 269_722,
    32: 464_154,
    44: 658_586,
    56: 853_018,
    110: 1_727_962,
    1202: 19_421_274,
}

MODELS: dict[str, ModelEntry] = {}
for _depth, _params in _CIFAR_SIZES.items():
    _n = (_depth - 2) // 6
    MODELS[f"resnet{_depth}"] = ModelEntry(
        ResNet, {"stage_sizes": (_n,) * 3}, _HE_2015, _params
    )
    MODELS[f"plain{_depth}"] = ModelEntry(
        ResNet,
        {"stage_sizes": (2 * _n,) * 3, "block": PlainLayer, "shortcut": None},
        _HE_2015,
        _params,
    )


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """The network of that name.

    Args:
        name: one of `list_models()`.
        **kwargs: fields of its class, as `num_classes`, `stochastic_depth`, `shortcut`,
            `axis_name`, `dtype`.

    Raises:
        InputError: unknown name, or a field that the class does not have.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    entry = MODELS[name]
    try:
        return entry.build(
            **{"num_classes": entry.num_classes, **entry.arguments, **kwargs}
        )
    except TypeError as error:
        raise InputError(f"{name} cannot be made: {error}.") from error


def list_models() -> list[str]:
    """The names that `create_model` takes, in the order of the table."""
    return list(MODELS)


def register_model(name: str, entry: ModelEntry) -> None:
    """Adds a network of your own to the table.

    Raises:
        InputError: the name is taken.
    """
    if name in MODELS:
        raise InputError(f"A model named {name!r} is in the table already.")
    MODELS[name] = entry
