# SPDX-License-Identifier: Apache-2.0
"""The notebooks: as a new user finds them, and run from top to bottom."""

import json

import nbformat
import pytest
from nbclient import NotebookClient

from docs import generate

FILES = sorted(generate.NOTEBOOKS.glob("*.ipynb"))
NAMES = [file.stem for file in FILES]


def test_there_is_a_title_for_each():
    assert set(NAMES) == set(generate.TITLES)


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_notebook_is_clean_and_has_the_address(file):
    notebook = json.loads(file.read_text())
    nbformat.validate(notebook)
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    first = ["".join(cell["source"]) for cell in notebook["cells"][:2]]
    assert tuple(first) == generate.first_cells(file.name)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_notebook_runs(file, tmp_path):
    """In a folder of its own, which is where it leaves its files."""
    root = generate.NOTEBOOKS.parent
    for name in ("configs", "experiments", "rn_jax"):
        (tmp_path / name).symlink_to(root / name)
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    texts = [
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    ]
    assert "Error" not in " ".join(texts)
