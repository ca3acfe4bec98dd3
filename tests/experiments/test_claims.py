# SPDX-License-Identifier: Apache-2.0
"""The command that collects evidence and judges claims."""

import json

import fake
import pytest
from driver import ROOT, in_process
from etils import epath

from experiments import claims
from experiments.papers import claim_table, exact
from experiments.papers import evidence as ev

CLAIMS = claim_table.CLAIMS


def run(monkeypatch, tmp_path, *only):
    argv = [f"--workdir={tmp_path}", f"--only={','.join(only)}"]
    return in_process(monkeypatch, argv, claims)


def test_exact_numbers_are_computed_once(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path, "linear_decay", "expected_depth") == 0
    out = capsys.readouterr().out
    assert "expected_depth: holds (40.25 of 54 blocks are open on average)\n" in out
    monkeypatch.setattr(exact, "FUNCTIONS", {})  # computing again would fail
    assert run(monkeypatch, tmp_path, "linear_decay") == 0
    page = (tmp_path / "claims.md").read_text()
    assert "p_1 = 0.991, p_54 = 0.500 | **holds** |" in page
    assert f"Of {len(CLAIMS)} claims, holds: 2, " in page


def test_runs_are_trained_with_every_seed_and_resumed(tmp_path, monkeypatch, capsys):
    """Constant depth 6, 7 and 8 %, stochastic depth 5 points less."""
    name = "stochastic_depth_is_better"
    error = lambda c: 6.0 + c.seed - 5 * (c.stochastic_depth is not None)  # noqa: E731
    fake.use(monkeypatch, error, at=3, ends=KeyboardInterrupt())
    assert run(monkeypatch, tmp_path, name) == 75
    assert f"--workdir={tmp_path} resumes from" in capsys.readouterr().err
    trained = fake.use(monkeypatch, error)
    assert run(monkeypatch, tmp_path, name) == 0
    assert [(c.stochastic_depth is None, c.seed) for c in trained] == [
        *((True, 2),),
        *((False, 0), (False, 1), (False, 2)),
    ]
    assert all(c.dataset == "digits" for c in trained)
    says = "resnet110_sd 2.00 ± 1.00, resnet110 7.00 ± 1.00 (3 seeds, p = 0.0036)"
    assert f"{name}: holds (test error (%): {says})" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, name) == 0
    assert len(trained) == 4


@pytest.mark.parametrize(
    ("name", "place", "images", "draws", "says"),
    [
        (*("vgg_deletions", "ensembles/vgg15-digits"), None, 10, "holds (after the"),
        (
            *("single_deletions_short", "short_cifar/resnet56-cifar10", 500, 3),
            "does not hold here (0 %, 0 %, 0 % of the deletions",
        ),
    ],
)
def test_studies_are_done_for_every_seed(
    tmp_path, monkeypatch, capsys, name, place, images, draws, says
):
    """Their networks are trained first; the studies of all seeds are kept."""
    trained, studied = fake.use(monkeypatch), []

    def analyze(workdir, studies, style, command, **how):
        studied.append(workdir)
        assert how == {"images": images, "draws": draws}
        blocks = [{"error_percent": 85.0, "transition": t} for t in (False, True)]
        result = {"baseline_error_percent": 1.0, "num_classes": 10, "blocks": blocks}
        folder = epath.Path(workdir) / "analysis"
        folder.mkdir()
        for study in studies:
            (folder / f"{study}.json").write_text(json.dumps(result))

    monkeypatch.setattr(claims, "analyze", analyze)
    assert run(monkeypatch, tmp_path, name) == 0
    assert len(trained) == 3
    assert studied == [f"{tmp_path}/{place}/seed{s}" for s in range(3)]
    kept = tmp_path / "results/claims" / place
    assert sorted(path.name for path in kept.iterdir()) == ["seed0", "seed1", "seed2"]
    assert f"{name}: {says}" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, name) == 0
    assert len(studied) == 3


def test_unknown_claims_are_refused(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path, "expected_dept") == 2
    assert "Unknown claim 'expected_dept'; similar: expected_depth" in (
        capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_its_evidence_or_a_command(name):
    claim = CLAIMS[name]
    assert bool(claim.evidence) == (claim.judge is not None) == (not claim.command)
    assert claim.says.endswith(".") and claim.source
    for evidence in claim.evidence:
        if isinstance(evidence, ev.Exact):
            assert evidence.name in exact.FUNCTIONS


def test_what_no_command_here_measures_is_not_run(tmp_path):
    """Claims that need a benchmark or a GPU; a missing study is "not run yet"."""
    folder = epath.Path(tmp_path)
    names = {"error_20": ev.NOT_RUN, "degradation_cifar": ev.NOT_RUN}
    for name, verdict in {**names, "reordering": ev.PENDING}.items():
        assert claims.seen(CLAIMS[name], folder) == ev.Seen("", verdict)


def test_page_is_that_of_the_committed_evidence():
    page = (ROOT / "docs" / "claims.md").read_text("utf-8")
    assert page == claims.as_page(claims.all_seen(epath.Path(ROOT / "results")))
    assert f"Of {len(CLAIMS)} claims, " in page


def test_names_are_unique():
    assert len(CLAIMS) == sum(map(len, claim_table.GROUPS.values()))
