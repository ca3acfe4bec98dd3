# SPDX-License-Identifier: Apache-2.0
"""The notebooks: as a new user finds them, and run from top to bottom."""

import base64
import importlib.metadata
import json
import os
import re
import sys
import types

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from docs import generate, notebooks

FILES = notebooks.FILES
# What a run of the notebook is to show.
SHOWN = {
    "quickstart": [r"test error \d\.\d\d %", "ResNet with 15 blocks"],
    "stochastic_depth": ["broken weights, gate 1: NaN", "broken .* gate 0: finite"],
    "ensembles": ["95 % of the gradient", r"loaded: \d\.\d\d % test error"],
    "your_own_block": [r"whole: \d\.\d\d % test error", r"odd or even: \d?\d\.\d"],
}
NAMES = [file.stem for file in FILES]


@pytest.fixture(autouse=True)
def as_for_a_reader(monkeypatch):
    """Kernels have JAX as it is, where tests are strict and compile quickly."""
    monkeypatch.setenv("JAX_NUMPY_DTYPE_PROMOTION", "standard")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "false")


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


def run_first_cell(monkeypatch, versions_after_pip):
    """What it calls on Colab, with JAX and Flax of some version after pip."""
    calls, versions = [], {"jax": "0.7.2", "flax": "0.11.2"}

    def magic(name, line, **_):
        calls.append(f"{name} {line.format(**shell.user_ns)}")
        if name == "pip":
            versions.update(versions_after_pip)

    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: versions.get(name) or version(name)
    )
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    monkeypatch.setattr(shell, "system", calls.append)
    monkeypatch.setattr(shell, "run_line_magic", magic)
    _, cell = generate.first_cells("quickstart.ipynb")
    shell.run_cell(cell).raise_error()
    return calls


def test_first_cell_installs_beside_the_jax_of_colab(monkeypatch, capsys):
    clone, pip, cd = run_first_cell(monkeypatch, {})
    assert re.fullmatch(r"git clone .*/rn_jax /content/rn_jax", clone)
    assert pip.endswith('"/content/rn_jax[train]" jax==0.7.2 flax==0.11.2')
    assert cd == "cd -q /content/rn_jax"
    assert "uses" in capsys.readouterr().out  # the devices


def test_first_cell_refuses_another_jax(monkeypatch, capsys):
    with pytest.raises(AssertionError, match=r"pip replaced .* choose Runtime"):
        run_first_cell(monkeypatch, {"jax": "0.10.2"})


def run(notebook, folder):
    """What it prints, and whether it draws; its files are left in the folder."""
    notebooks.run(notebook, folder)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    draws = any("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.get("text", "") for output in outputs), draws


def test_page_has_the_outputs_of_a_run():
    """In order, without what a line was before it was overwritten, or stderr."""
    png = b"a picture"
    v4 = nbformat.v4
    outputs = [
        v4.new_output("stream", name="stdout", text="1 of 2\r2 of 2\nended\n"),
        v4.new_output("stream", name="stderr", text="a warning"),
        v4.new_output(
            "display_data",
            data={
                "image/png": base64.b64encode(png).decode(),
                "text/plain": "<Figure>",
            },
        ),
        v4.new_output("execute_result", data={"text/plain": "42"}, execution_count=1),
    ]
    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Title"),
            v4.new_code_cell("f()", outputs=outputs),
        ]
    )
    text, pictures = notebooks.as_markdown(notebook, "name")
    assert text.split("\n\n") == [
        "# Title",
        "````python\nf()\n````",
        "````text\n2 of 2\nended\n````",
        "![Output of the cell above](name_1.png)",
        "````text\n42\n````\n",
    ]
    assert pictures == {"name_1.png": png}


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_notebook_runs(file, tmp_path):
    text, draws = run(nbformat.read(file, as_version=4), tmp_path)
    assert draws
    for line in SHOWN[file.stem]:
        assert re.search(line, text)


@pytest.mark.slow
def test_everything_is_kept_in_google_drive(tmp_path):
    """With a stand-in for Colab's module, which needs no runtime."""
    notebook = nbformat.read(notebooks.FOLDER / "quickstart.ipynb", as_version=4)
    colab = """
import sys, types
colab = sys.modules["google.colab"] = types.ModuleType("google.colab")
colab.drive = types.SimpleNamespace(mount=print)
"""
    notebook.cells.insert(2, nbformat.v4.new_code_cell(colab))
    for cell in notebook.cells:
        cell.source = (
            cell.source.replace("DRIVE = False", "DRIVE = True")
            .replace("EPOCHS = 12", "EPOCHS = 1")
            .replace("/content/drive/MyDrive", str(tmp_path / "drive"))
        )
    text, _ = run(notebook, tmp_path)
    assert "/content/drive\n" in text  # what is mounted
    assert not (tmp_path / "runs").exists()
    [kept] = (tmp_path / "drive").iterdir()
    names = {file.name for file in kept.iterdir()}
    assert names == {"quickstart-digits-1", "quickstart.safetensors"}


@pytest.mark.slow
def test_ensembles_of_an_imported_network(tmp_path):
    """As far as the lesion of each block, on a network of another project."""
    folder = os.environ.get("RN_JAX_TEST_WEIGHTS")
    if not folder or "TFDS_DATA_DIR" not in os.environ:
        pytest.skip("needs RN_JAX_TEST_WEIGHTS and TFDS_DATA_DIR")
    notebook = nbformat.read(notebooks.FOLDER / "ensembles.ipynb", as_version=4)
    notebook.cells = notebook.cells[:10]
    imported = (f"{folder}/akamaster_resnet32.th", "resnet32", "cifar10")
    for cell in notebook.cells:
        cell.source = cell.source.replace(
            "IMPORTED = None", f"IMPORTED = {imported}"
        ).replace("EPOCHS = 8", "EPOCHS = 1")
    text, draws = run(notebook, tmp_path)
    [error] = re.findall(r"resnet32, imported: (\d+\.\d\d) % test error", text)
    assert 0 < float(error) < 15 and draws  # of 7.37 % over all 10,000 images
