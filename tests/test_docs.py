# SPDX-License-Identifier: Apache-2.0
"""docs/models.md is what the networks say, docs/scaling.md what its result says."""

import subprocess
import sys

import pytest

import rn_jax
from docs import generate
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


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    root = generate.PATH.parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference/rn_jax/index.html").read_text()
    for name in rn_jax.__all__:
        assert f'id="rn_jax.{name}"' in reference
