# SPDX-License-Identifier: Apache-2.0
"""The studies' command: its files, what it resumes, its errors, and its numbers."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from driver import ROOT
from style import check_style
from tiny import TINY

import rn_jax
from experiments import analyze, export
from experiments.studies import STUDIES, subject
from experiments.training import trained
from experiments.training.workdir import read_checkpoint
from rn_jax import StochasticDepth, parallel, stack, survival_probs, unstack
from rn_jax.analysis import lesion
from rn_jax.models import MODELS

# The network is no DenseNet.
DONE = {n: study for n, study in STUDIES.items() if n != "feature_reuse"}
ALL = ["--draws=2", "--batch_size=100", "--seed=3"]


@pytest.fixture(scope="module")
def run(run):
    """As the command takes it."""
    return str(run)


@pytest.fixture(scope="module")
def studied(run, tmp_path_factory, saved_figures):
    """The folder of all studies of that run, and their figures."""
    out = tmp_path_factory.mktemp("analysis") / "tiny_sd"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY)
        assert analyze.main([f"--workdir={run}", f"--out={out}", *ALL]) == 0
    return out, saved_figures[-len(DONE) :]


@pytest.fixture(scope="module")
def analysis(studied):
    return studied[0]


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_every_study_has_its_figure_its_numbers_and_a_paragraph(studied):
    analysis, figures = studied
    report = (analysis / "report.md").read_text()
    for (name, study), figure in zip(DONE.items(), figures, strict=True):
        found = read(analysis, name)
        assert found["study"] == name
        assert found["images"] == found["test_images"] == 360  # fewer than 2,000
        assert found["seed"] == 3 and found["draws"] == 2
        assert (
            found["baseline_error_percent"]
            == read(analysis, "delete_one")["baseline_error_percent"]
        )
        assert figure.get_suptitle() == study.title
        caption = (analysis / f"{name}.txt").read_text()
        assert caption.startswith(f"{study.title}\n\n{study.question} ")
        uses = "".join(f"; {option}: {found[option]}" for option in study.uses)
        settings = f"tiny_sd: tiny on digits, {found['measured_on']}; gates: survival "
        assert f"{settings}probabilities kept as factors{uses}." in caption
        assert any(axes.has_data() for axes in figure.axes)
        check_style(figure)
        assert (analysis / f"{name}.png").exists()
        assert f"]({name}.png)" in report
    assert report.count("**tiny_sd.** ") == len(STUDIES)
    assert report.count("Not done") == 1
    assert "Not done: only layers of a DenseNet read" in report
    assert "nan" not in report


def test_whole_network_errs_as_at_the_end_of_training(run, analysis):
    summary = json.loads((Path(run) / "summary.json").read_text())
    baseline = read(analysis, "delete_one")["baseline_error_percent"]
    assert baseline == pytest.approx(summary["test_error_percent"], abs=1e-4)


def test_another_checkpoint_is_the_network_of_its_step(run, tmp_path):
    """The test error is that which the run logged then."""
    epochs = [*map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())]
    steps = [int(path.name) for path in Path(run, "checkpoints").iterdir()]
    [line] = [e for e in epochs if e["kind"] == "epoch" and e["step"] == min(steps)]
    assert min(steps) < epochs[-1]["step"]
    given = {"workdir": run, "studies": ["delete_one"]}
    found = analyze.analyze(**given, step=min(steps), out=tmp_path)
    [(label, results)] = found.items()
    assert label == f"tiny_sd-step{min(steps)}"
    error = results["delete_one"]["baseline_error_percent"]
    assert error == pytest.approx(line["test_error_percent"], abs=1e-4)
    saved = read_checkpoint(Path(run), min(steps))["params"]
    opened = subject.from_run(run, step=min(steps)).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, opened, saved)
    last = subject.from_run(run).variables["params"]
    pairs = zip(jax.tree.leaves(opened), jax.tree.leaves(last), strict=True)
    assert any(np.any(here != there) for here, there in pairs)


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
    product = np.array(gradients["relative_mean"]) * lengths["paths"]["weights"]
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


def test_drawn_lesions_and_orders_are_applied(run, analysis):
    """One draw of each, again by hand: k blocks closed, and factors that move along."""
    network = subject.from_run(run)
    model, test = network.model, network.test
    images = network.preprocess(test.images)
    apply = jax.jit(partial(model.apply, train=False))
    p = np.asarray(survival_probs(StochasticDepth(), 4))

    def error(variables, gates):
        logits = np.asarray(apply(variables, images, gates=gates.astype("float32")))
        return 100 * (logits.argmax(axis=-1) != test.labels).mean()

    def rng(name):
        return np.random.default_rng([3, zlib.crc32(name.encode())])

    draws, first = rng("delete_many"), []
    for k in (1, 1, 2, 2):
        closed = lesion.draw_blocks(draws, model.blocks, k)
        first.append(error(network.variables, p * ~np.isin(np.arange(4), closed)))
    found = read(analysis, "delete_many")
    assert found["deleted"] == [1, 2, 3, 4]
    np.testing.assert_allclose(np.ravel(found["error_percent"][:2]), first)

    pairs = [(0, 1)]  # of stage 2's blocks one is the transition
    assert read(analysis, "permute")["pairs"] == 1
    order = lesion.draw_order(rng("permute"), 4, pairs, 1)
    np.testing.assert_array_equal(order, [1, 0, 2, 3])
    apart = jax.device_get(unstack(network.variables))
    for tree in apart.values():
        stage = tree["stage1"]
        stage["block01"], stage["block02"] = stage["block02"], stage["block01"]
    swapped = error(stack(apart, model), p[[1, 0, 2, 3]])
    one = read(analysis, "permute")["orders"][0]
    assert one == {
        "swaps": 1,
        "kendall_tau": pytest.approx(1 - 4 / 12),
        "error_percent": pytest.approx(swapped),
    }


def test_another_call_keeps_the_studies_that_are_there(run, analysis, tmp_path):
    out = tmp_path / "tiny_sd"
    shutil.copytree(analysis, out)
    argv = [f"--workdir={run}", f"--out={out}", *ALL]
    (out / "path_lengths.json").unlink()
    assert analyze.main([*argv, "--study=path_lengths"]) == 0
    report = (out / "report.md").read_text()
    done = [name for name in STUDIES if (out / f"{name}.json").exists()]
    assert len(STUDIES) - len(done) == 1  # it has no DenseNet's features
    assert report.count("**tiny_sd.** ") == len(done)
    anew, earlier = (read(out, s)["command"] for s in ("path_lengths", "permute"))
    assert f"--out={out} --draws=2" in anew and "--study" not in earlier
    assert f"    {anew}\n\nEarlier studies were made with\n\n    {earlier}\n" in report


@pytest.mark.slow
def test_finished_studies_are_not_run_again(run, analysis, monkeypatch, capsys):
    def broken(lab):
        raise AssertionError("run again")

    before = (analysis / "delete_one.json").read_bytes()
    for name, study in STUDIES.items():
        again = dataclasses.replace(study, measure=broken)
        monkeypatch.setitem(STUDIES, name, again)
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
    # What has no draws does not depend on their number.
    fewer = [*argv, "--draws=1"]
    assert analyze.main([*fewer, "--study=delete_one,layer_responses"]) == 0
    for name in ("delete_many", "permute", "path_gradients", "depth_dial"):
        assert analyze.main([*fewer, f"--study={name}"]) == 2
        assert "draws 2 there and 1 here" in capsys.readouterr().err


def test_a_notebook_calls_it_with_keywords(run, analysis, tmp_path):
    found = analyze.analyze(
        workdir=run, studies=["path_lengths"], out=tmp_path, bounds=[(1, 2)], seed=3
    )
    [result] = found["tiny_sd"].values()
    assert result == read(tmp_path, "path_lengths")
    same = read(analysis, "path_lengths")["paths"]["weights"]
    assert result["paths"]["weights"] == same
    assert result["paths"]["shares"] == [{"from": 1, "to": 2, "share": 10 / 16}]
    report = (tmp_path / "report.md").read_text()
    assert "    experiments.analyze.analyze(...)\n" in report


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


def test_seeds_of_two_rows_beside_each_other(run, tmp_path):
    for row in ("first", "second"):
        (tmp_path / row).mkdir()
        (tmp_path / row / "seed0").symlink_to(run)
    assert not analyze.main(
        [
            f"--workdir={tmp_path}/first/seed0",
            f"--compare={tmp_path}/second/seed0",
            f"--out={tmp_path}/out",
            "--study=path_lengths",
        ]
    )
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.startswith("# Studies of first-seed0, second-seed0\n")
    assert (tmp_path / "out" / "second-seed0" / "path_lengths.json").exists()


def test_a_sweep_stands_for_its_runs_whose_own_analyses_are_used(run, tmp_path):
    for name in ("rate=0.1", "rate=0.2"):
        shutil.copytree(run, tmp_path / name, ignore=lambda *_: ["analysis"])
    shutil.copytree(run, tmp_path / "rate=0.3", ignore=lambda *_: ["analysis"])
    (tmp_path / "rate=0.3" / "summary.json").unlink()  # unfinished
    study = ["--study=path_lengths"]
    assert not analyze.main([f"--workdir={tmp_path}/rate=0.2", *study])
    own = tmp_path / "rate=0.2" / "analysis" / "path_lengths.json"
    own.write_text(json.dumps({**json.loads(own.read_text()), "mark": 1}))
    assert not analyze.main([f"--workdir={tmp_path}", *study])
    report = (tmp_path / "analysis" / "report.md").read_text()
    assert report.startswith("# Studies of rate=0.1, rate=0.2\n")
    assert not list(tmp_path.glob("analysis/rate=0.2/*.json"))
    assert (tmp_path / "analysis" / "rate=0.1" / "path_lengths.json").exists()
    one = tmp_path / "rate=0.2"
    found = analyze.analyze(
        workdir=str(one), studies=["path_lengths"], compare=[str(tmp_path)]
    )
    assert list(found) == ["rate=0.2", "rate=0.1"]
    assert found["rate=0.2"]["path_lengths"]["mark"] == 1
    found = analyze.analyze(  # with settings of its own, it is done again
        workdir=f"{tmp_path}/rate=0.1",
        studies=["path_lengths"],
        compare=[str(one)],
        bounds=[(1, 2)],
        out=tmp_path / "out",
    )
    assert "mark" not in found["rate=0.2"]["path_lengths"]


def test_weights_of_ours_are_studied_as_their_run(run, analysis, tmp_path, capsys):
    file = tmp_path / "ours.safetensors"
    found = trained.finished(run)
    rn_jax.save(file, found.model, found.variables, info=export.facts(found))
    argv = [f"--weights={file}", f"--out={tmp_path}", "--study=delete_one,short_paths"]
    assert analyze.main([*argv, "--images=360"]) == 0
    ours, of_run = read(tmp_path, "delete_one"), read(analysis, "delete_one")
    same = ("baseline_error_percent", "blocks", "gates", "model", "weights_sha256")
    assert {k: ours[k] for k in same} == {k: of_run[k] for k in same}
    assert (
        "weights in a file come without the log" in (tmp_path / "report.md").read_text()
    )
    bare = tmp_path / "bare.safetensors"
    rn_jax.save(bare, found.model, found.variables)
    assert analyze.main([f"--weights={bare}"]) == 2
    assert "does not name an in-memory data set" in capsys.readouterr().err


@pytest.mark.slow
def test_imported_weights_laid_over_an_earlier_analysis(analysis, tmp_path, capsys):
    folder = os.environ.get("RN_JAX_TEST_WEIGHTS")
    if not (folder and os.environ.get("TFDS_DATA_DIR")):
        pytest.skip("RN_JAX_TEST_WEIGHTS and TFDS_DATA_DIR are not both set")
    pytest.importorskip("torch", reason="reads a checkpoint of PyTorch")
    weights = f"{folder}/akamaster_resnet20.th"
    argv = ["--model=resnet20", f"--weights={weights}", "--dataset=cifar10"]
    argv += [f"--out={tmp_path}", "--images=100", f"--compare={analysis}"]
    assert analyze.main([*argv, "--study=delete_one,short_paths,path_lengths"]) == 0
    found = read(tmp_path, "delete_one")
    assert found["baseline_error_percent"] <= 15  # 8.27 % on all 10,000
    assert found["normalization"] == "imagenet"
    assert found["model_kwargs"] == {"shortcut": "A_centered"}
    assert len(found["blocks"]) == 9
    assert [b["transition"] for b in found["blocks"]] == [
        index in (3, 6) for index in range(9)
    ]
    report = (tmp_path / "report.md").read_text()
    assert "**akamaster_resnet20.** Not done: weights in a file come without" in report
    assert "**tiny_sd.** Trained with stochastic depth" in report
    assert "## Across networks" in report
    assert analyze.main([argv[0], argv[1], "--dataset=cifar100"]) == 2
    assert "10 output classes" in capsys.readouterr().err


@pytest.mark.slow
def test_imported_weights_are_studied_on_every_core(tmp_path):
    """In a process of its own, where JAX has not been used yet."""
    folder = os.environ.get("RN_JAX_TEST_WEIGHTS")
    if not (folder and os.environ.get("TFDS_DATA_DIR")):
        pytest.skip("RN_JAX_TEST_WEIGHTS and TFDS_DATA_DIR are not both set")
    pytest.importorskip("torch", reason="reads a checkpoint of PyTorch")
    options = ["--model=resnet20", "--dataset=cifar10", "--study=path_lengths"]
    options += [f"--weights={folder}/akamaster_resnet20.th", f"--out={tmp_path}"]
    command = [sys.executable, "-m", "experiments.analyze", "--images=8", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cores = parallel.cpu_cores()
    assert read(tmp_path, "path_lengths")["device"] == f"{cores} x cpu"
    assert f"Report: {tmp_path}/report.md" in done.stdout


IMPORTED = ["--model=resnet20", "--weights=x.th", "--dataset=cifar10"]


@pytest.mark.parametrize(
    "argv, says",
    [
        ([], "Name a finished run by --workdir alone, weights of this library by"),
        (["--weights=resnet20_digits", "--model=resnet20"], "Name a finished run"),
        (
            ["--weights=resnet20_digit"],
            "Unknown trained network 'resnet20_digit'; similar",
        ),
        (["--model=resnet20", "--weights=x.th"], "Name a finished run"),
        (["--workdir=RUN", "--model=resnet20"], "Name a finished run"),
        (["--workdir=RUN", "--normalization=channel"], "Name a finished run"),
        (["--workdir=RUN", "--step=1"], "has no checkpoint of step 1, only of steps "),
        (["--workdir=RUN", "--step=0"], "--step must be at least 1, not 0"),
        (["--step=1"], "--step needs --workdir, the folder of one run."),
        (["--workdir=nowhere"], "nowhere is not a run: python -m experiments.run"),
        (["--workdir=RUN", "--study=delete_on"], "similar: delete_one"),
        (["--workdir=RUN", "--images=361"], "digits has 360 test images"),
        (["--workdir=RUN", "--draws=0"], "--draws must be at least 1, not 0"),
        (
            ["--workdir=RUN", "--bounds=9-5"],
            "such as 5-17,19-35, not 9-5",
        ),
        (["--workdir=RUN", "--bounds=9"], "--bounds must be ranges such as"),
        (["--workdir=RUN", "--factors=maybe"], "Unknown factors 'maybe'; available"),
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
    shutil.copy(Path(run) / "config.json", tmp_path)
    assert analyze.main([f"--workdir={tmp_path}"]) == 2
    assert "has not ended" in capsys.readouterr().err
