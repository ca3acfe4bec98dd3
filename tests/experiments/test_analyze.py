# SPDX-License-Identifier: Apache-2.0
"""The studies' command: its files, what it resumes, its errors, and its numbers."""

import importlib
import json
import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from command import CACHE
from tiny import TINY

from experiments import analyze, loop, studies, subject
from experiments.studies import STUDIES
from rn_jax import StochasticDepth, survival_probs
from rn_jax.models import MODELS

ALL = ["--draws=2", "--batch_size=100", "--seed=3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of four blocks with stochastic depth."""
    path = str(tmp_path_factory.mktemp("run") / "tiny_sd")
    config = importlib.import_module("configs.resnet20").get_config("digits").to_dict()
    config |= {
        "model": "tiny",
        "epochs": 2,
        "batch_size": 240,
        "num_devices": 2,
        "stochastic_depth": {"last_survival": 0.5},
        "compilation_cache": str(CACHE),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY)
        loop.train(config, path)
    return path


@pytest.fixture(scope="module")
def analysis(run, tmp_path_factory):
    """The folder of all studies of that run."""
    out = tmp_path_factory.mktemp("analysis") / "tiny_sd"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY)
        assert analyze.main([f"--workdir={run}", f"--out={out}", *ALL]) == 0
    return out


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_every_study_has_its_figure_its_numbers_and_a_paragraph(analysis):
    report = (analysis / "report.md").read_text()
    for name in STUDIES:
        found = read(analysis, name)
        assert found["study"] == name
        assert found["images"] == found["test_images"] == 360  # fewer than 2,000
        assert found["seed"] == 3 and found["draws"] == 2
        assert (
            found["baseline_error_percent"]
            == read(analysis, "delete_one")["baseline_error_percent"]
        )
        png = (analysis / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) > 10_000
        assert f"]({name}.png)" in report
    assert report.count("**tiny_sd.** ") == len(STUDIES)
    assert "Not done" not in report
    assert "nan" not in report


def test_whole_network_errs_as_at_the_end_of_training(run, analysis):
    summary = json.loads((Path(run) / "summary.json").read_text())
    baseline = read(analysis, "delete_one")["baseline_error_percent"]
    assert baseline == pytest.approx(summary["test_error_percent"], abs=1e-4)


def test_errors_of_lesions_one_network_at_a_time(run, analysis):
    network = subject.from_run(run)
    model, test = network.model, network.test
    p = np.asarray(survival_probs(StochasticDepth(), 4))
    images = network.preprocess(test.images)
    apply = jax.jit(partial(model.apply, train=False))
    marks = read(analysis, "delete_one")["blocks"]
    for index, mark in enumerate(marks):
        gates = p.copy()
        gates[index] = 0  # the others keep their factors
        logits = np.asarray(apply(network.variables, images, gates=gates))
        wrong = (logits.argmax(axis=-1) != test.labels).mean()
        assert mark["error_percent"] == pytest.approx(100 * wrong, abs=1e-9)
    assert [mark["transition"] for mark in marks] == [False, False, True, False]
    damage = read(analysis, "survival_damage")["damage_points"]
    baseline = read(analysis, "delete_one")["baseline_error_percent"]
    errors = [mark["error_percent"] for mark in marks]
    np.testing.assert_allclose(damage, np.array(errors) - baseline)


def test_dial_ends_at_the_whole_network_and_at_none(run, analysis):
    dial = read(analysis, "depth_dial")
    assert dial["closed"] == [0, 1, 2, 3, 4] and dial["open"] == [4, 3, 2, 1, 0]
    ends = {name: (e[0], e[-1]) for name, e in dial["error_percent"].items()}
    whole = dial["baseline_error_percent"]
    assert set(ends["random"][0]) == {whole} and ends["survival"][0] == [whole]
    assert ends["survival"][1] == ends["damage"][1] == ends["random"][1][:1]
    # Closing the deepest block first is deleting the last one.
    last = read(analysis, "delete_one")["blocks"][-1]["error_percent"]
    assert dial["error_percent"]["survival"][1] == [last]


def test_distributions_of_the_run(analysis):
    lengths = read(analysis, "path_lengths")
    np.testing.assert_allclose(
        lengths["paths"]["weights"], np.array([1, 4, 6, 4, 1]) / 16
    )
    # Linear decay to 0.5: p = 7/8, 6/8, 5/8, 4/8.
    assert lengths["open_blocks"]["mean"] == pytest.approx(22 / 8)
    assert lengths["open_blocks"]["weights"][4] == pytest.approx(7 * 6 * 5 * 4 / 8**4)
    assert lengths["paths_in_training"]["mean"] == pytest.approx(11 / 8)
    gradients = read(analysis, "path_gradients")
    product = np.array(gradients["norm_mean"]) * lengths["paths"]["weights"]
    np.testing.assert_allclose(gradients["contribution"]["weights"], product)
    assert len(read(analysis, "layer_responses")["layers"]) == 8
    assert len(read(analysis, "gradient_magnitude")["first_gradient"]) == 2


def test_draws_come_from_the_seed(run, analysis, tmp_path):
    names = "--study=delete_many,permute"
    for seed, same in ((3, True), (4, False)):
        out = tmp_path / str(seed)
        argv = [f"--workdir={run}", f"--out={out}", *ALL, names, f"--seed={seed}"]
        assert analyze.main(argv) == 0
        equal = [
            read(out, name)[field] == read(analysis, name)[field]
            for name, field in (("delete_many", "error_percent"), ("permute", "orders"))
        ]
        assert all(equal) if same else not all(equal)


def test_finished_studies_are_not_run_again(run, analysis, monkeypatch, capsys):
    def broken(lab):
        raise AssertionError("run again")

    before = (analysis / "delete_one.json").read_bytes()
    for name, study in STUDIES.items():
        again = studies.Study(broken, study.missing)
        monkeypatch.setitem(studies.STUDIES, name, again)
    argv = [f"--workdir={run}", f"--out={analysis}", *ALL]
    (analysis / "report.md").unlink()
    assert analyze.main(argv) == 0
    assert (analysis / "report.md").exists()
    with pytest.raises(AssertionError, match="run again"):
        analyze.main([*argv, "--study=delete_one", "--force"])
    # Other settings are another study: said, and nothing is touched.
    assert analyze.main([*argv, "--images=100"]) == 2
    said = capsys.readouterr().err
    assert "images 360 there and 100 here" in said and "--force" in said
    assert (analysis / "delete_one.json").read_bytes() == before


def test_factors_are_kept_or_dropped_as_said(run, tmp_path):
    argv = [f"--workdir={run}", f"--out={tmp_path}", *ALL, "--study=delete_one"]
    assert analyze.main([*argv, "--factors=drop"]) == 0
    found = read(tmp_path, "delete_one")
    assert found["gates"] == "survival probabilities dropped"
    network = subject.from_run(run)
    images = network.preprocess(network.test.images)
    apply = jax.jit(partial(network.model.apply, train=False))
    logits = np.asarray(apply(network.variables, images, gates=np.ones(4, "float32")))
    wrong = (logits.argmax(axis=-1) != network.test.labels).mean()
    assert found["baseline_error_percent"] == pytest.approx(100 * wrong)


def test_imported_weights_laid_over_an_earlier_analysis(analysis, tmp_path, capsys):
    folder = os.environ.get("RN_JAX_TEST_WEIGHTS")
    if not (folder and os.environ.get("TFDS_DATA_DIR")):
        pytest.skip("RN_JAX_TEST_WEIGHTS and TFDS_DATA_DIR are not both set")
    weights = f"{folder}/akamaster_resnet20.th"
    argv = ["--model=resnet20", f"--weights={weights}", "--dataset=cifar10"]
    argv += [f"--out={tmp_path}", "--images=100", f"--compare={analysis}"]
    assert analyze.main([*argv, "--study=delete_one,short_paths,path_lengths"]) == 0
    found = read(tmp_path, "delete_one")
    assert found["baseline_error_percent"] <= 15  # 8.27 % on all 10,000
    assert len(found["blocks"]) == 9
    assert [b["transition"] for b in found["blocks"]] == [
        index in (3, 6) for index in range(9)
    ]
    report = (tmp_path / "report.md").read_text()
    assert "**akamaster_resnet20.** Not done: imported weights come without" in report
    assert "**tiny_sd.** Trained with stochastic depth" in report
    assert "## Across networks" in report
    assert analyze.main([argv[0], argv[1], "--dataset=cifar100"]) == 2
    assert "10 classes" in capsys.readouterr().err


IMPORTED = ["--model=resnet20", "--weights=x.th", "--dataset=cifar10"]


@pytest.mark.parametrize(
    "argv, says",
    [
        ([], "Name a finished run by --workdir, or imported weights"),
        (["--model=resnet20", "--weights=x.th"], "Name a finished run"),
        (["--workdir=RUN", "--model=resnet20"], "Name a finished run"),
        (["--workdir=nowhere"], "The run nowhere is not there"),
        (["--workdir=RUN", "--study=delete_on"], "near it: delete_one"),
        (["--workdir=RUN", "--images=361"], "digits has 360 test images"),
        (["--workdir=RUN", "--draws=0"], "--draws must be at least 1, not 0"),
        (["--workdir=RUN", "--bounds=9-5"], "--bounds must be ranges such as"),
        (["--workdir=RUN", "--factors=maybe"], "invalid choice: 'maybe'"),
        (["--workdir=RUN", "--imgs=3"], "Unrecognized arguments: --imgs=3"),
        (["--workdir=RUN", "--compare=nowhere"], "nowhere is neither a finished run"),
        (["--workdir=RUN", "--compare=RUN"], "Two networks are named tiny_sd"),
        (IMPORTED, "There is no file x.th"),
        ([*IMPORTED, "--model_kwargs=B"], "--model_kwargs must be a dict"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, argv, says, capsys):
    argv = [part.replace("RUN", run) for part in argv]
    assert analyze.main([*argv, f"--out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert says in said and said.startswith("rn_jax: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_not_ended_is_said(run, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert analyze.main([f"--workdir={tmp_path}"]) == 2
    assert "has not ended" in capsys.readouterr().err
