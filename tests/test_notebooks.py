# SPDX-License-Identifier: Apache-2.0
"""The notebooks: as a new user finds them, and run from top to bottom."""

import json
import re

import nbformat
import pytest
from nbclient import NotebookClient

from docs import generate

FILES = sorted(generate.NOTEBOOKS.glob("*.ipynb"))
# What a run of the notebook is to show.
SHOWN = {
    "quickstart": [r"test error \d\.\d\d %", "ResNet with 15 blocks"],
    "stochastic_depth": ["broken weights, gate 1: NaN", "broken .* gate 0: finite"],
    "ensembles": ["95 % of the gradient", r"loaded: \d\.\d\d % test error"],
    "your_own_block": [r"whole: \d\.\d\d % test error", r"odd or even: \d?\d\.\d"],
}
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
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    for line in SHOWN[file.stem]:
        assert re.search(line, text)
