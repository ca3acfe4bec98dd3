# SPDX-License-Identifier: Apache-2.0
"""A page of the site for each family of networks, from the tables and the code.

A family is a module of rn_jax.models that has a network or a block of its own.
"""

import ast
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import flax.linen as nn

import configs
from experiments import markdown
from rn_jax.models import MODELS, ModelEntry
from rn_jax.models.network import Network
from rn_jax.models.resnet import Block, ResNet

DOCS = Path(__file__).parent

# The methods in which a block says what it computes.
_METHODS = ("shortcut", "residual", "after", "__call__")


def family(entry: ModelEntry) -> str:
    """Return the module that makes a network, or that makes a ResNet special."""
    if entry.build is not ResNet:
        return entry.build.__module__
    if "block" in entry.arguments:
        return entry.arguments["block"].__module__
    if "branch_init" in entry.arguments:
        return "rn_jax.models.starts"
    return entry.build.__module__


FAMILIES: dict[str, list[str]] = {}
for _name, _entry in MODELS.items():
    FAMILIES.setdefault(family(_entry), []).append(_name)


def uri(module: str) -> str:
    """Return the name of a family's page."""
    return f"families/{module.rpartition('.')[2]}.md"


def title(module: str) -> str:
    """Return the short title of a family's page: that of its docstring."""
    return re.split(r"[:(]", _docstring(module)[0])[0].strip(" .")


def _docstring(name):
    """Return the first sentence of a module's docstring, and the rest."""
    text = inspect.getdoc(importlib.import_module(name))
    summary, _, rest = text.partition("\n\n")
    return " ".join(summary.split()), rest


def pages() -> dict[str, str]:
    """Return the text of each family's page, by its name on the site."""
    return {uri(module): page(module) for module in FAMILIES}


def page(name: str) -> str:
    """Return the page of a family."""
    module, networks = importlib.import_module(name), FAMILIES[name]
    summary, rest = _docstring(name)
    blocks = list(_blocks(module))
    parts = [
        f"# {summary.rstrip('.')}",
        rest,
        f'```python\nmodel = rn_jax.create_model("{networks[0]}")\n```',
        "## Networks",
        _networks(networks),
        "The columns are those of [all networks](../models.md).",
        _variations(networks),
        _recipes(networks),
        *(blocks and ["## What a block computes", *blocks]),
        "## Reference",
        f"::: {name}\n    options:\n      heading_level: 3",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _networks(networks):
    """Return the rows of docs/models.md."""
    lines = (DOCS / "models.md").read_text("utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    rows = [row for row in table[2:] if row[2:].partition(" | ")[0] in networks]
    return "\n".join([*table[:2], *rows])


def _variations(networks):
    """Return the rows of docs/families.md about these networks' papers."""
    papers = {MODELS[network].paper for network in networks}
    rows = []
    for line in (DOCS / "families.md").read_text("utf-8").splitlines():
        if not line.startswith("| ") or line.startswith(("| paper", "| ---")):
            continue
        cells = re.split(r" ?(?<!\\)\| ?", line)[1:-1]
        found = any(p in paper for p in cells[0].split(", ") for paper in papers)
        if found and cells[2]:
            rows.append(f"- {cells[0]}: {cells[2]}")
    return "\n".join(["## Variations", "", *rows]) if rows else ""


@functools.cache
def _configs():
    """Return every config by its name, for the first data set of its paper."""
    return {name: configs.get_config(name) for name in configs.names()}


def _recipes(networks):
    """Return the table of the configs that train these networks."""
    rows = []
    for name, config in _configs().items():
        if config.model in networks:
            errors = config.published_error_percent.items()
            published = ", ".join(f"{data}: {error:.2f}" for data, error in errors)
            row = [f"`{name}`", config.model, config.paper, configs.where(name)]
            rows.append([*row, published or "-"])
    head = ["config", "network", "paper", "where", "published error (%)"]
    table = "\n".join(markdown.table(head, rows))
    return f"## Recipes\n\n{table}" if rows else ""


def _blocks(module: ModuleType) -> Iterator[str]:
    """Yield the code of each block's methods, which reads like its figure."""
    for name, found in vars(module).items():
        own = inspect.isclass(found) and found.__module__ == module.__name__
        if not own or found is Block:
            continue
        if not issubclass(found, nn.Module) or issubclass(found, Network):
            continue
        methods = [_code(m) for key, m in vars(found).items() if key in _METHODS]
        if methods:
            body = textwrap.indent("\n\n".join(methods), "    ")
            base = found.__base__
            parent = "nn.Module" if base is nn.Module else base.__name__
            yield f"```python\nclass {name}({parent}):\n{body}\n```"


def _code(method):
    """Return the source of a method without its docstring and decorators."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(method)))
    [function] = ast.parse(source).body
    lines = source.splitlines()
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    code = "\n".join(lines[function.lineno - 1 :])
    return re.sub(r"  # type: ignore.*|(?<=:\n)\n", "", code)
