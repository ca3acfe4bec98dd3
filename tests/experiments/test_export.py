# SPDX-License-Identifier: Apache-2.0
"""Networks of finished runs in files, and what they see in pictures."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from driver import in_process

import rn_jax
from experiments import export, predict
from rn_jax import data


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


def test_onnx_is_the_network_from_pixels_to_logits(
    run, trained, monkeypatch, capsys, tmp_path
):
    pytest.importorskip("jax2onnx", reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    file = tmp_path / "program.onnx"
    options = ["--format=onnx", f"--out={file}"]
    assert in_process(monkeypatch, [f"--workdir={run}", *options], export) == 0
    hint = capsys.readouterr().out.splitlines()[-1]
    logits, test = trained
    names = {"onnxruntime": onnxruntime, "images": test.images}
    exec(hint, names)  # as it is printed
    np.testing.assert_allclose(names["logits"], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options, match",
    [
        (["--format=gguf"], "Unknown format 'gguf'; available: onnx, safetensors, sta"),
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
        assert "is not a run: python -m experiments.run" in capsys.readouterr().err


def test_a_run_that_has_not_ended_is_said(run, tmp_path, monkeypatch, capsys):
    shutil.copy(run / "config.json", tmp_path)
    for program, more in ((export, []), (predict, ["x.png"])):
        assert in_process(monkeypatch, [f"--workdir={tmp_path}", *more], program) == 2
        assert "has not ended" in capsys.readouterr().err
