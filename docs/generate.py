# SPDX-License-Identifier: Apache-2.0
"""Write docs/models.md, tables of other pages and README, notebooks' first cells.

python -m docs.generate

docs/models.md comes from the networks. Other tables are between markers: those of
docs/scaling.md come from results/scaling.json, those of compiled steps in
results/measurements.md from results/device_programs_*.json, that of docs/weights.md
from rn_jax.interop.public, and README's table of results from the runs that results/
keeps. The first two cells of a notebook, its title and what installs, have the address
of setup.cfg.
"""

import configparser
import functools
import json
import re
from pathlib import Path

from etils import epath

import configs
import rn_jax
from benchmarks import device_program, measure, scaling
from docs import notebooks
from experiments import markdown
from experiments.papers import results_page
from rn_jax.analysis.cost import multiply_adds
from rn_jax.interop.public import PUBLIC
from rn_jax.models import MODELS

PATH = Path(__file__).parent / "models.md"
SCALING = Path(__file__).parent / "scaling.md"
WEIGHTS = Path(__file__).parent / "weights.md"
README = Path(__file__).parents[1] / "README.md"
MEASUREMENTS = measure.RESULTS / "measurements.md"

HEADER = """# Networks

`python -m docs.generate` writes this page, and tests check every number.
[Families](families.md) lists the variations of each paper.

- Parameters are for the classes of the data set (10 for CIFAR-10 and MNIST, 1000 for
  ImageNet) and include auxiliary heads.
- Multiply-adds are those of convolutions and matrix products for one image at test, of
  32x32, 28x28, 224x224 or 299x299 pixels, without auxiliary heads.
- Blocks are the length of a vector of gates: residual units, dense layers, highway
  layers, or layers of a plain network or VGG.
- Published errors are test errors in percent, for ImageNet top-1 errors by the paper's
  own evaluation.
- Bottlenecks of ImageNet networks have the stride on the 3x3 convolution, as in
  fb.resnet.torch and torchvision; `block_kwargs={"stride_on": "1x1"}` selects that of
  He et al. 2015.

| name | paper | parameters | multiply-adds (1e6) | blocks | published error |
| --- | --- | ---: | ---: | ---: | --- |
"""


@functools.cache
def published() -> dict[str, str]:
    """Return the errors of each network, with configs of another name in brackets."""
    found: dict[str, str] = {}
    for name in configs.names():
        config = configs.get_config(name)
        error = config.published_error_percent.get(config.dataset)
        if error is None and not config.expected_to_fail:
            continue
        before = found.get(config.model)
        text = f"{before}, " if before else f"{config.dataset}: "
        text += "fails" if error is None else f"{error:.2f}"
        text += "" if name == config.model else f" ({name})"
        found[config.model] = text
    return found


def row(name: str) -> str:
    """Return one line of the table, without a line break."""
    entry, model = MODELS[name], rn_jax.create_model(name)
    cost = multiply_adds(model, entry.image_size, entry.channels) / 1e6
    numbers = [f"{entry.params:,}", f"{cost:,.1f}", str(model.num_blocks)]
    return markdown.row([name, entry.paper, *numbers, published().get(name, "-")])


def with_tables(text: str) -> str:
    """Return the text of docs/scaling.md with the tables of results/scaling.json.

    Args:
        text: with every table, old or none, between <!-- NAME --> and <!-- end -->.
    """
    result = json.loads((measure.RESULTS / "scaling.json").read_bytes())
    for name, table in scaling.tables(result).items():
        text = _with(text, name, table)
    return text


def with_programs(text: str) -> str:
    """Return the text of results/measurements.md with the tables of compiled steps."""
    for device in device_program.DEVICES:
        path = measure.RESULTS / f"device_programs_{device}.json"
        rows = json.loads(path.read_bytes())["programs"]
        text = _with(text, device, "\n".join(device_program.table(rows)))
    return text


def with_results(text: str) -> str:
    """Return the text of README with the rows of results that have been run."""
    rows = results_page.rows_with_runs(epath.Path(measure.RESULTS))
    return _with(text, "results", f"\n{rows}\n")


def with_public_weights(text: str) -> str:
    """Return the text of docs/weights.md with the table of public weights."""
    trainings: dict[str, dict[bool, list[str]]] = {}
    for name, weights in PUBLIC.items():
        both = trainings.setdefault(weights.network, {False: [], True: []})
        training = name.removeprefix(f"{weights.network}.")
        both["IMAGENET1K" in training].append(f"`{training}`")
    rows = [
        [name, *(", ".join(names) or "-" for names in trainings[name].values())]
        for name in MODELS
        if name in trainings
    ]
    table = markdown.table(["network", "timm", "torchvision"], rows)
    return _with(text, "public", "\n".join(table))


def _with(text, name, table):
    block = f"<!-- {name} -->\n{table}\n<!-- end -->"
    return re.sub(f"(?s)<!-- {name} -->.*?<!-- end -->", lambda _: block, text)


TITLES = {
    "quickstart": "Quickstart: a residual network with stochastic depth",
    "stochastic_depth": "Stochastic depth: what gates do",
    "ensembles": "Residual networks as ensembles of shallow ones",
    "your_own_block": "A block of your own",
}

COLAB = "https://colab.research.google.com"
BADGE = f"![Open in Colab]({COLAB}/assets/colab-badge.svg)"

INSTALL = """# On Colab, install the project beside Colab's JAX, whose version stays.
# Then print the devices that train.
import os
import sys
from importlib.metadata import version

if "google.colab" in sys.modules:
    JAX, FLAX = version("jax"), version("flax")
    if not os.path.isdir("/content/rn_jax"):
        !git clone --quiet --depth=1 {url} /content/rn_jax
    %pip install --quiet "/content/rn_jax[train]" jax=={{JAX}} flax=={{FLAX}}
    unchanged = (version("jax"), version("flax")) == (JAX, FLAX)
    assert unchanged, "pip replaced JAX or Flax: choose Runtime > Restart session."
    %cd -q /content/rn_jax
elif not os.path.isdir("configs"):
    %cd -q ..

from experiments.training import environment

print(environment.devices_in_words())
"""


def first_cells(file: str) -> tuple[str, str]:
    """Return a notebook's title with its badge, and the cell that installs."""
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parents[1] / "setup.cfg")
    url = settings["metadata"]["url"]
    name = url.removeprefix("https://github.com/")
    badge = f"[{BADGE}]({COLAB}/github/{name}/blob/main/notebooks/{file})"
    return f"# {TITLES[Path(file).stem]}\n\n{badge}", INSTALL.format(url=url).strip()


def main() -> None:
    """Write the files."""
    rows = "\n".join(row(name) for name in rn_jax.list_models())
    PATH.write_text(f"{HEADER}{rows}\n", "utf-8")
    print(PATH)
    pages = {
        SCALING: with_tables,
        MEASUREMENTS: with_programs,
        WEIGHTS: with_public_weights,
        README: with_results,
    }
    for page, with_new_tables in pages.items():
        page.write_text(with_new_tables(page.read_text("utf-8")), "utf-8")
        print(page)
    for path in notebooks.FILES:
        notebook = json.loads(path.read_bytes())
        for cell, text in zip(notebook["cells"], first_cells(path.name), strict=False):
            cell["source"] = text.splitlines(keepends=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, "utf-8")
        print(path)


if __name__ == "__main__":
    main()
