# SPDX-License-Identifier: Apache-2.0
"""Notebooks as pages of the site, with the outputs of a run."""

import asyncio
import base64
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
MINUTES = 10  # upper limit for each notebook, on two busy CPU cores


def uri(path: Path) -> str:
    """Return the name of a notebook's page."""
    return f"notebooks/{path.stem}.md"


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run a notebook in a folder, where its files stay; it gets its outputs."""
    for name in ("configs", "experiments", "rn_jax"):
        (folder / name).symlink_to(ROOT / name)
    client = NotebookClient(notebook, resources={"metadata": {"path": str(folder)}})
    asyncio.run(asyncio.wait_for(client.async_execute(), MINUTES * 60))


def page(path: Path, *, execute: bool) -> dict[str, str | bytes]:
    """Return the page of a notebook and its pictures, by their names on the site.

    Args:
        path: the notebook, without outputs.
        execute: whether to run it first, so that the page has its outputs.
    """
    notebook = nbformat.read(path, as_version=4)
    if execute:
        print(f"Running {path.name} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, Path(folder))
    text, pictures = as_markdown(notebook, path.stem)
    return {uri(path): text, **{f"notebooks/{n}": p for n, p in pictures.items()}}


def as_markdown(
    notebook: nbformat.NotebookNode, name: str
) -> tuple[str, dict[str, bytes]]:
    """Return a notebook in Markdown, and the PNGs that it shows, named after `name`.

    What a cell prints on stderr is left out: bars and warnings.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(_fence(cell.source, "python"))
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}_{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![Output of the cell above]({file})")
            elif "text/plain" in data:
                parts.append(_fence(data["text/plain"], "text"))
            elif output.get("name") == "stdout":
                parts.append(_fence(output.text, "text"))
    return "\n\n".join(parts) + "\n", pictures


def _fence(text, language):
    # Keep only the final state of a line that was overwritten.
    lines = re.sub(r"(?m)^.*\r(?!$)", "", text).rstrip()
    return f"````{language}\n{lines}\n````"
