# SPDX-License-Identifier: Apache-2.0
"""The recipes of papers, which change fields of default.py, and rows of their tables.

A file is a recipe, with a table `ROWS` of the networks that were trained by it, or one
config. Commands accept the name of a file or of a row, also as configs/NAME.py.
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
        fields: fields in which the row differs from the recipe; "model", if its name is
            not the row's.
        recipe: the recipe, if it is not the file's `get_config`.
        on_digits: fields in which the row differs from other recipes on digits.
    """

    where: str
    published: Mapping[str, float] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    recipe: Callable[..., ConfigDict] | None = None
    on_digits: Mapping[str, Any] = field(default_factory=dict)


@functools.cache
def index() -> dict[str, tuple[ModuleType, Row | None]]:
    """Return the file and the row of every name; a file's own name has no row."""
    found: dict[str, tuple[ModuleType, Row | None]] = {}
    for file in sorted(FOLDER.glob("[!_]*.py")):
        module = importlib.import_module(f"configs.{file.stem}")
        found[file.stem] = module, None
        for name, row in getattr(module, "ROWS", {}).items():
            found[name] = module, row
    return found


@functools.cache
def names() -> list[str]:
    """Return the names of all configs that have a network."""
    return [
        name
        for name, (module, row) in index().items()
        if row or module.get_config().model  # every row names a network
    ]


def where(name: str) -> str:
    """Return where a config's paper describes it, or the summary of its file."""
    module, row = index()[name]
    return row.where if row else (module.__doc__ or name).partition(".\n")[0]


def get_config(name: str, dataset: str | None = None) -> ConfigDict:
    """Return a config by its name.

    Args:
        name: name of a row, such as "resnet20", or of a file here.
        dataset: name of the data set; None: the first one of the paper.

    Raises:
        InputError: there is no such name; similar ones are listed.
    """
    if name not in index():
        raise unknown_name("config", name, names())
    module, row = index()[name]
    recipe = (row and row.recipe) or module.get_config
    config = recipe() if dataset is None else recipe(dataset)
    if row is None:
        return config
    config.model = name
    config.published_error_percent = dict(row.published)
    config.update(copy.deepcopy(dict(row.fields)))
    config = default.with_dataset(config)
    if config.dataset == "digits":
        config.update(copy.deepcopy(dict(row.on_digits)))
    return config
