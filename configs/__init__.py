# SPDX-License-Identifier: Apache-2.0
"""The recipes of papers, over the fields of default.py, and the rows of their tables.

A file is a recipe with a table `ROWS` of the networks that were trained by it, or one
config. `--config=configs/NAME.py` takes the name of either.
"""

import copy
import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from configs import default
from rn_jax.errors import unknown_name

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """A row of a paper's table: a network, trained by the recipe of its file.

    Attributes:
        where: the table, figure or section of the paper.
        published: test errors in percent by data set.
        fields: what the row has otherwise than the recipe; the model, if it has another
            name than the row.
        recipe: another than the file's `get_config`.
    """

    where: str
    published: Mapping[str, float] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    recipe: Callable[..., ConfigDict] | None = None


@functools.cache
def _found() -> dict[str, tuple[ModuleType, Row | None]]:
    """The file and the row of every name; a file's own name has no row."""
    found: dict[str, tuple[ModuleType, Row | None]] = {}
    for file in sorted(FOLDER.glob("[!_]*.py")):
        module = importlib.import_module(f"configs.{file.stem}")
        found[file.stem] = module, None
        for name, row in getattr(module, "ROWS", {}).items():
            found[name] = module, row
    return found


@functools.cache
def names() -> list[str]:
    """Names of all configs that have a network."""
    return [
        name
        for name, (module, row) in _found().items()
        if row or module.get_config().model  # a row always has one
    ]


def where(name: str) -> str:
    """Where a config's paper has it, or what its file says of it."""
    module, row = _found()[name]
    return row.where if row else (module.__doc__ or name).partition(".\n")[0]


def get_config(name: str, dataset: str | None = None) -> ConfigDict:
    """A config by its name.

    Args:
        name: of a row, as "resnet20", or of a file here.
        dataset: that it is for; None: the first one of its paper.

    Raises:
        InputError: no such name; those near it are listed.
    """
    if name not in _found():
        raise unknown_name("config", name, names())
    module, row = _found()[name]
    recipe = (row and row.recipe) or module.get_config
    config = recipe() if dataset is None else recipe(dataset)
    if row is None:
        return config
    config.model = name
    config.published_error_percent = dict(row.published)
    config.update(copy.deepcopy(dict(row.fields)))
    return default.with_dataset(config)
