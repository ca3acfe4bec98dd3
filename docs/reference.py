# SPDX-License-Identifier: Apache-2.0
"""Pages of the site about the commands and the fields of a config, from the code."""

import importlib
import inspect
import re

from configs import default
from experiments import cli, markdown

_COMMANDS = """# Commands

Each command is a function with keywords, which are its options; in Python, call the
function. `python -m experiments.COMMAND --help` prints what is below. Where the package
is installed, `rn-jax COMMAND` takes the same arguments in any folder. Options
`--config.FIELD=VALUE` set [fields of the config](config.md).
"""

_CONFIG = """# Fields of a config

`configs/default.py` has every field with its default, the recipe of He et al. 2015 on
CIFAR-10. A recipe of another paper changes some of them, and
`--config.FIELD=VALUE` changes one for a run.
"""

# A comment above fields, or a field with its comment.
_LINE = re.compile(
    r"^    (?:# (?P<section>.+)|(?P<name>\w+): .+ = .+?  # (?P<text>.+))$", re.M
)


def pages() -> dict[str, str]:
    """Return the text of the pages by their names on the site."""
    return {"reference/commands.md": commands(), "reference/config.md": config()}


def commands() -> str:
    """Return the page of all commands: what `--help` prints."""
    parts = [_COMMANDS]
    for name in cli.COMMANDS:
        module = importlib.import_module(f"experiments.{name}")
        parser = cli.Parser(module.__doc__, getattr(module, name))
        rows = [
            [
                f"`{', '.join(o.option_strings) or o.metavar}`",
                (o.help or "").replace("%%", "%"),
            ]
            for o in parser.options
        ]
        usage = inspect.cleandoc(parser.usage or "")
        parts += [f"## {name}", parser.description or "", f"```text\n{usage}\n```"]
        parts.append("\n".join(markdown.table(["option", "meaning"], rows)))
    return "\n\n".join(parts) + "\n"


def config() -> str:
    """Return the page of all fields: values, default and comment by section."""
    sections: dict[str, list[list[str]]] = {}
    for found in _LINE.finditer(inspect.getsource(default.Config)):
        if found["section"]:
            rows = sections.setdefault(found["section"], [])
        else:
            name = found["name"]
            words = default.in_words(default.FIELDS[name])
            value = getattr(default.Config(), name)
            rows.append([f"`{name}`", words, f"`{value!r}`", found["text"]])
    head = ["field", "values", "default", "meaning"]
    tables = {name: markdown.table(head, rows) for name, rows in sections.items()}
    parts = ["\n".join([f"## {name}", "", *lines]) for name, lines in tables.items()]
    return "\n\n".join([_CONFIG, *parts]) + "\n"
