# SPDX-License-Identifier: Apache-2.0
"""Exact numbers: those that are committed are those of the code."""

import json

import pytest
from driver import ROOT

from experiments.papers import exact
from experiments.papers.evidence import EXACT

COMMITTED = json.loads((ROOT / "results" / EXACT).read_text())
# They trace large networks, or compile small ones.
LONG = {"sizes", "shortcuts", "deeper", "resnext_forms", "closed_blocks"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
        for name in exact.FUNCTIONS
    ],
)
def test_committed_numbers_are_those_of_the_code(name):
    found = json.loads(json.dumps(exact.FUNCTIONS[name]()))
    if name in ("deeper", "resnext_forms"):  # differences of rounding
        assert COMMITTED[name].keys() == found.keys()
        assert max(found.values()) < 1e-5
    elif name in ("path_lengths", "survival"):
        assert COMMITTED[name] == pytest.approx(found, rel=1e-6)
    else:
        assert COMMITTED[name] == found


def test_sizes_of_networks_by_the_papers():
    """Millions of parameters, as torchvision and the papers count them."""
    sizes = {name: round(s["params"] / 1e6) for name, s in COMMITTED["sizes"].items()}
    assert (sizes["alexnet_2012"], sizes["vgg16"], sizes["vgg19"]) == (61, 138, 144)
    assert sizes["resnet110"] == 2 and sizes["googlenet_2014"] == 7


def test_two_numbers_define_a_resnext_and_six_each_inception_module():
    assert COMMITTED["block_settings"] == {"resnext50_32x4d": 2, "googlenet": 6}
