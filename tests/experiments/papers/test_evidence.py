# SPDX-License-Identifier: Apache-2.0
"""Verdicts on claims, and the files that they are read from."""

import json

import pytest
from etils import epath

from experiments.papers import evidence as ev
from experiments.papers.evidence import Exact, Runs, Studies, in_every_run, lower


@pytest.mark.parametrize(
    ("here", "there", "verdict"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], ev.HOLDS),
        ([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], ev.FAILS),
        ([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], ev.UNDECIDED),
        ([1.0], [9.0], ev.UNDECIDED),  # one seed has no spread
        ([1.0, 1.0], [1.0, 1.0], ev.UNDECIDED),
        ([1.0, 1.0], [2.0, 2.0], ev.UNDECIDED),
    ],
)
def test_seeds_decide(here, there, verdict):
    seen = lower(("a", here), ("b", there), "error (%)")
    assert seen.verdict == verdict
    assert seen.text.startswith(f"error (%): a {sum(here) / len(here):.2f}")


def test_p_is_that_of_welch():
    """By hand: t = -1.5 / sqrt(1/3 + 4/3), 2.94 degrees of freedom, p = 0.33."""
    seen = lower(("a", [1.0, 2.0, 3.0]), ("b", [1.5, 3.5, 5.5]), "error (%)")
    assert seen.text.endswith("a 2.00 ± 1.00, b 3.50 ± 2.00 (3 seeds, p = 0.33)")


@pytest.mark.parametrize(
    ("held", "verdict"),
    [
        ([True, True, True], ev.HOLDS),
        ([False, False], ev.FAILS),
        ([True, True, False], ev.UNDECIDED),
        ([True], ev.UNDECIDED),
    ],
)
def test_networks_decide_together(held, verdict):
    seen = in_every_run("text", held, [not h for h in held])
    assert seen.verdict == verdict
    assert seen.text == f"text (in {sum(held)} of {len(held)} networks)"
    if not any(held):  # a claim that is missed need not be refuted
        assert in_every_run("text", held, [False] * len(held)).verdict == ev.UNDECIDED


def test_values_of_the_same_networks_are_paired():
    """By hand: differences 1, 2 and 3, t = 2 / (1 / sqrt 3), 2 degrees of freedom."""
    ours, theirs = ("a", [1.0, 21.0, 41.0]), ("b", [2.0, 23.0, 44.0])
    seen = lower(ours, theirs, "error (%)", paired=True)
    assert seen.text.endswith("(3 seeds, p = 0.074)")
    assert lower(ours, theirs, "error (%)").text.endswith("(3 seeds, p = 0.91)")
    constant = lower(("a", [1.0, 2.0]), ("b", [2.0, 3.0]), "error (%)", paired=True)
    assert constant.text.endswith("(2 seeds, no spread)")


def write(folder, place, value):
    file = folder / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def test_evidence_is_there_when_all_of_it_is(tmp_path):
    folder = epath.Path(tmp_path)
    runs = Runs("digits", ("resnet20",), seeds=2)
    studies = Studies(runs, ("permute",))
    assert runs.load(folder) is studies.load(folder) is Exact("sizes").load(folder)
    for seed in range(2):
        assert runs.load(folder) is studies.load(folder) is None
        place = f"digits/resnet20-digits/seed{seed}"
        write(tmp_path, f"runs/{place}/summary.json", {"seed": seed})
        write(tmp_path, f"claims/{place}/permute.json", {"of": seed})
    write(tmp_path, "claims/exact.json", {"sizes": 3})
    assert runs.load(folder) == {"resnet20": [{"seed": 0}, {"seed": 1}]}
    assert studies.load(folder) == [{"permute": {"of": 0}}, {"permute": {"of": 1}}]
    assert Exact("sizes").load(folder) == 3 and Exact("depths").load(folder) is None
