# SPDX-License-Identifier: Apache-2.0
"""What mkdocs adds to the pages of docs/: the site's other pages and its links.

The site also has the pages of results/, the changelog, the notebooks, and generated
pages: one for each family of networks, one for the commands and one for the fields of
a config. In these and in docs/, links between files are relative to the repository, as
on GitHub; links to files that are not on the site lead to the repository.
"""

import configparser
import os
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # of the program `mkdocs`
    sys.path.insert(0, str(ROOT))

from docs import families, notebooks, reference  # noqa: E402

# Where the text of a page outside docs/ is in the repository.
_sources: dict[str, str] = {}
# The pages about parts of the code.
_pages = {
    "configs/default.py": "reference/config.md",
    "experiments": "reference/commands.md",
    **{
        f"{name.replace('.', '/')}.py": families.uri(name) for name in families.FAMILIES
    },
}
_CODE_OR_LINK = re.compile(
    r"^(?P<fence>```+).*?^(?P=fence)$|`[^`\n]+`|\]\((?P<link>[^)\s]+)\)", re.S | re.M
)


def on_config(config):
    """Take the repository's address from setup.cfg, and list generated pages."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    config.repo_url = settings["metadata"]["url"]
    config.repo_name = posixpath.basename(config.repo_url)
    for section in config.nav:
        section.get("Networks", []).extend(
            {families.title(module): families.uri(module)}
            for module in families.FAMILIES
        )
        section.get("Notebooks", []).extend(map(notebooks.uri, notebooks.FILES))
    return config


def on_files(files, config):
    """Add the pages and pictures that are not in docs/."""
    copied = {"changelog.md": "CHANGELOG.md"}
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in (".md", ".png"):
            name = path.relative_to(ROOT).as_posix()
            copied[name] = name
    for uri, name in copied.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    _sources.update(copied)
    pages = {**families.pages(), **reference.pages()}
    execute = os.environ.get("RUN_NOTEBOOKS") == "1"
    for path in notebooks.FILES:
        pages |= notebooks.page(path, execute=execute)
        _sources[notebooks.uri(path)] = path.relative_to(ROOT).as_posix()
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links between the repository's files into the site's; fill in its URL."""
    uri = page.file.src_uri
    folder = posixpath.dirname(_sources.get(uri, f"docs/{uri}"))
    on_site = {**_pages, **{source: name for name, source in _sources.items()}}

    def link(found):
        target, mark, anchor = (found["link"] or "").partition("#")
        if not target or re.match("[a-z]+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        name = on_site.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(name):
            there = posixpath.relpath(name, posixpath.dirname(uri) or ".")
        elif (ROOT / path).exists():
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            there = f"{config.repo_url}/{kind}/main/{path}"
        else:
            raise PluginError(f"{uri} links to {target}, which does not exist.")
        return f"]({there}{mark}{anchor})"

    markdown = _CODE_OR_LINK.sub(link, markdown)
    return markdown.replace("git clone REPOSITORY", f"git clone {config.repo_url}")
