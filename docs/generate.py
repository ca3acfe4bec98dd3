# SPDX-License-Identifier: Apache-2.0
"""Writes docs/models.md from the networks, and the tables of docs/scaling.md.

python -m docs.generate

Those of docs/scaling.md are between markers, and come from results/scaling.json.
"""

import json
import re
from pathlib import Path

import rn_jax
from benchmarks import measure, scaling
from rn_jax.analysis.cost import multiply_adds
from rn_jax.models import MODELS

PATH = Path(__file__).parent / "models.md"
SCALING = Path(__file__).parent / "scaling.md"

HEADER = """# Networks

Written by `python -m docs.generate`; every number is tested. Parameters are for the
classes of the data set (10 for CIFAR-10 and MNIST, 1000 for ImageNet), multiply-adds
for one image at test, of 32x32, 28x28 or 224x224 pixels, in convolutions and matrix
products; auxiliary heads have parameters, and no part at test. Blocks are the length
of a vector of gates: residual units, dense or highway layers, layers of a plain network
or of VGG. Published errors are test errors in per cent, for ImageNet top-1 under the
paper's own evaluation. ImageNet's bottlenecks have the stride on the 3x3 convolution,
as fb.resnet.torch and torchvision; `block_kwargs={"stride_on": "1x1"}` gives that of He
et al. 2015. `stem="small"` makes an ImageNet network one for images of 32 pixels.

| name | paper | parameters | multiply-adds (1e6) | blocks | published error |
| --- | --- | ---: | ---: | ---: | --- |
"""


def row(name: str) -> str:
    """One line of the table, without a line break."""
    entry, model = MODELS[name], rn_jax.create_model(name)
    cost = multiply_adds(model, entry.image_size, entry.channels) / 1e6
    return (
        f"| {name} | {entry.paper} | {entry.params:,} | {cost:,.1f} "
        f"| {model.num_blocks} | {entry.published or '-'} |"
    )


def with_tables(text: str) -> str:
    """The words of docs/scaling.md with the tables of results/scaling.json.

    Args:
        text: with every table, old or none, between <!-- NAME --> and <!-- end -->.
    """
    result = json.loads((measure.RESULTS / "scaling.json").read_text())
    for name, table in scaling.tables(result).items():
        block = f"<!-- {name} -->\n{table}\n<!-- end -->"
        text = re.sub(f"(?s)<!-- {name} -->.*?<!-- end -->", lambda _: block, text)
    return text


def main() -> None:
    """Writes the files."""
    rows = "\n".join(row(name) for name in rn_jax.list_models())
    PATH.write_text(f"{HEADER}{rows}\n")
    print(PATH)
    SCALING.write_text(with_tables(SCALING.read_text()))
    print(SCALING)


if __name__ == "__main__":
    main()
