# SPDX-License-Identifier: Apache-2.0
"""docs/models.md is what the networks say, docs/scaling.md what its result says.

The site is built, and its generated pages have all commands, fields and networks.
"""

import os
import re
import subprocess
import sys

import pytest

import configs
import rn_jax
from configs.default import FIELDS
from docs import families, generate, notebooks, reference
from experiments import cli
from rn_jax.models import MODELS

LINES = generate.PATH.read_text().splitlines()[len(generate.HEADER.splitlines()) :]
ROWS = {line.split("|")[1].strip(): line for line in LINES}


def test_every_model_is_in_the_docs():
    assert generate.PATH.read_text().startswith(generate.HEADER)
    assert list(ROWS) == rn_jax.list_models()
    for name, line in ROWS.items():
        entry = MODELS[name]
        assert entry.paper in line and f"| {entry.params:,} |" in line
        assert f"| {rn_jax.create_model(name).num_blocks} |" in line


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet20", "cifar10: 8.75"),
        ("preact_resnet164", "cifar10: 5.46"),
        ("resnet110_scaling_0_1", "cifar10: fails"),
        ("resnet152_svhn", "svhn_cropped: 1.80, 1.75 (resnet152_svhn_sd)"),
        ("resnet50", "imagenet2012: 22.85"),
        ("googlenet_2014", "-"),
        (
            "resnet34",
            "imagenet2012: 25.03 (resnet34_a), 24.52 (resnet34_b), 24.19 (resnet34_c)",
        ),
    ],
)
def test_published_errors(name, published):
    """As the papers print them; configs of another name are in brackets."""
    assert ROWS[name].endswith(f"| {published} |")


def test_scaling_has_the_tables_of_its_result():
    text = generate.SCALING.read_text()
    assert text.count("<!-- end -->") == text.count("<!--") // 2 == 6
    assert generate.with_tables(text) == text


def test_measurements_have_the_tables_of_compiled_steps():
    text = generate.MEASUREMENTS.read_text()
    assert text.count("<!-- end -->") == text.count("<!--") // 2 == 2
    assert generate.with_programs(text) == text


def test_weights_have_the_table_of_public_ones():
    text = generate.WEIGHTS.read_text()
    assert text.count("<!-- public -->") == 1
    assert generate.with_public_weights(text) == text


def test_readme_has_the_rows_that_have_been_run():
    text = generate.README.read_text()
    assert text.count("<!-- results -->") == 1
    assert generate.with_results(text) == text


@pytest.mark.parametrize("name", ["resnet20", "resnext50_32x4d"])
def test_rows(name):
    assert ROWS[name] == generate.row(name)


@pytest.mark.slow
def test_all_rows():
    assert list(ROWS.values()) == [generate.row(name) for name in ROWS]


def test_every_option_of_every_command_is_on_its_page():
    """As the usage lines of the commands, which are written by hand, name them."""
    sections = dict(
        re.findall(r"(?ms)^## (\w+)$(.*?)(?=^## |\Z)", reference.commands())
    )
    assert tuple(sections) == cli.COMMANDS
    for text in sections.values():
        usage, table = text.split("```text\n")[1].split("```")
        named = set(re.findall(r"--(?!config|FIELD)\w+", usage))
        assert named and named <= set(re.findall(r"(?m)^\| `(--\w+)` \| \S", table))


def test_every_field_of_the_config_is_on_its_page():
    rows = re.findall(
        r"(?m)^\| `(\w+)` \| (.+) \| `(.+)` \| (.+) \|$", reference.config()
    )
    assert [name for name, *_ in rows] == list(FIELDS)
    told = {name: rest for name, *rest in rows}
    assert told["batch_size"][:2] == ["a whole number from 1 to 65,536", "128"]
    assert told["optimizer"][0] == "`sgd`, `adamw`, `lars`"
    assert told["epochs"][0] == "a whole number from 1, or `None`"
    assert told["lr_drops"][0] == "a tuple of entries, each a number from 0"


def test_every_network_and_recipe_is_on_the_page_of_one_family():
    pages = families.pages()
    rows = re.findall(r"(?m)^\| (\w+) \|(?! paper| network)", "".join(pages.values()))
    assert sorted(rows) == sorted(MODELS)
    recipes = re.findall(r"(?m)^\| `(\w+)` \| ", "".join(pages.values()))
    assert sorted(recipes) == sorted(configs.names())
    assert "self.conv(" in pages["families/resnet.md"].split("class BasicBlock")[1]
    assert "RoR" in pages["families/ror.md"] and "levels=1" in pages["families/ror.md"]


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    """Without running the notebooks, which have tests of their own."""
    root = generate.PATH.parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=root,
        env={**os.environ, "RUN_NOTEBOOKS": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference/rn_jax/index.html").read_text()
    ids = [page.index(f'id="rn_jax.{name}"') for name in rn_jax.__all__]
    assert page.index('id="rn_jax.create_model"') == min(ids)
    for uri in [
        *(families.uri(name) for name in families.FAMILIES),
        *map(notebooks.uri, notebooks.FILES),
    ]:
        assert (tmp_path / uri.removesuffix(".md") / "index.html").is_file()
    # Links out of docs/ lead to the site's other pages, or to the repository.
    gates = (tmp_path / "gates/index.html").read_text()
    assert 'href="../results/measurements/"' in gates
    assert "/blob/main/results/compile_time_cpu.json" in gates
