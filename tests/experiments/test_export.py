# SPDX-License-Identifier: Apache-2.0
"""Networks of finished runs in files, and what they see in pictures."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from command import in_process
from PIL import Image
from tiny import TINY

import rn_jax
from experiments import export, predict, subject
from rn_jax import data
from rn_jax.models import MODELS


@pytest.fixture(scope="module")
def trained(run):
    """The run's logits of the test images, by the code that studies use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY)
        found = subject.from_run(str(run))
    logits = jax.jit(lambda x: found.model.apply(found.variables, x, train=False))
    return np.asarray(logits(found.preprocess(found.test.images))), found.test


def error_percent(logits, labels):
    return 100 * float((np.asarray(logits).argmax(1) != labels).mean())


def test_safetensors_are_the_network_with_what_one_needs_to_use_it(
    run, trained, monkeypatch, capsys
):
    argv = [f"--workdir={run}", "--format=safetensors"]
    assert in_process(monkeypatch, argv, export) == 0
    file = run / "tiny.safetensors"
    told = capsys.readouterr().out
    assert f"Wrote {file}" in told and f'rn_jax.load("{file}")' in told

    model, variables = rn_jax.load(file)
    info = rn_jax.read_info(file)
    stats = info["normalization"]
    logits, test = trained
    images = data.normalize(test.images, stats["mean"], stats["std"])
    ours = model.apply(variables, images, train=False)
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-5)
    assert info["test_error_percent"] == error_percent(ours, test.labels)
    assert info["class_names"] == list("0123456789")
    assert info["config"]["stochastic_depth"] == {"last_survival": 0.5}


def test_stablehlo_is_the_network_from_pixels_to_logits(
    run, trained, monkeypatch, capsys, tmp_path
):
    file = tmp_path / "program"
    assert in_process(monkeypatch, [f"--workdir={run}", f"--out={file}"], export) == 0
    hint = capsys.readouterr().out.splitlines()[-1]
    logits, test = trained
    names = {"jax": jax, "Path": Path}
    exec(hint, names)  # as it is printed
    found = names["network"](test.images)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert error_percent(found, test.labels) == summary["test_error_percent"]


@pytest.mark.parametrize(
    "options, match",
    [
        (["--format=onnx"], "invalid choice: 'onnx'"),
        (
            ["--out=/none/x.stablehlo"],
            "There is no folder /none: make it",
        ),
        (["--out=x.npz", "--format=safetensors"], "Name the file x.safetensors"),
    ],
)
def test_bad_input(run, monkeypatch, capsys, options, match):
    assert in_process(monkeypatch, [f"--workdir={run}", *options], export) == 2
    assert re.search(match, capsys.readouterr().err)


def test_a_folder_that_is_no_run(tmp_path, monkeypatch, capsys):
    for program, more in ((export, []), (predict, ["x.png"])):
        argv = [f"--workdir={tmp_path / 'none'}", *more]
        assert in_process(monkeypatch, argv, program) == 2
        assert "is no run: python -m experiments.run" in capsys.readouterr().err


def test_a_run_that_has_not_ended_is_said(run, tmp_path, monkeypatch, capsys):
    shutil.copy(run / "config.json", tmp_path)
    for program, more in ((export, []), (predict, ["x.png"])):
        assert in_process(monkeypatch, [f"--workdir={tmp_path}", *more], program) == 2
        assert "has not ended" in capsys.readouterr().err


def test_predict_prints_classes_and_probabilities(
    run, trained, monkeypatch, capsys, tmp_path
):
    logits, test = trained
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, file in enumerate(files):
        Image.fromarray(test.images[i, ..., 0]).save(file)
    argv = [f"--workdir={run}", "--top=2", *files]
    assert in_process(monkeypatch, argv, predict) == 0
    told = capsys.readouterr().out.splitlines()
    probabilities = np.asarray(jax.nn.softmax(logits[:3]))
    for file, line, found in zip(files, told, probabilities, strict=True):
        name, _, classes = line.rpartition(": ")
        assert name == file
        expected = [f"{k} {100 * found[k]:.2f} %" for k in np.argsort(-found)[:2]]
        assert classes == ", ".join(expected)


def test_pictures_of_other_sizes_and_colours(run, trained, monkeypatch):
    """The middle is taken, in the size and the colours that the network has."""
    _, test = trained
    monkeypatch.setitem(MODELS, "tiny", TINY)
    found = subject.finished(str(run))
    image = test.images[0, ..., 0]
    wide = Image.new("L", (16, 8), 255)
    wide.paste(Image.fromarray(image), (4, 0))
    large = np.kron(image, np.ones((10, 10), np.uint8))
    seen = []
    for name, picture in (("wide", wide), ("large", Image.fromarray(large))):
        picture.convert("RGB").save(run / f"{name}.png")
        file = str(run / f"{name}.png")
        seen.append(predict._view(file, found.config, found.experiment)[..., 0])
    np.testing.assert_array_equal(seen[0], image)
    assert np.corrcoef(seen[1].ravel(), image.ravel())[0, 1] > 0.97


@pytest.mark.parametrize(
    "options, match",
    [
        (["{text}"], "is no picture: take a PNG or JPEG"),
        (["/none.png"], "none.png cannot be read .No such file"),
        (["--top=11", "{text}"], "--top must be between 1 and 10, not 11"),
        ([], "arguments are required: IMAGE"),
    ],
)
def test_bad_pictures(run, tmp_path, monkeypatch, capsys, options, match):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    argv = [f"--workdir={run}", *(o.format(text=text) for o in options)]
    assert in_process(monkeypatch, argv, predict) == 2
    assert re.search(match, capsys.readouterr().err)
