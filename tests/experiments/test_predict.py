# SPDX-License-Identifier: Apache-2.0
"""Classes that a finished run's network sees in pictures of every kind."""

import re

import jax
import numpy as np
import pytest
from driver import in_process
from PIL import Image
from tiny import TINY

from experiments import predict
from experiments.training.trained import finished
from rn_jax.models import MODELS


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
    found = finished(str(run))
    image = test.images[0, ..., 0]
    wide = Image.new("L", (16, 8), 255)
    wide.paste(Image.fromarray(image), (4, 0))
    large = np.kron(image, np.ones((10, 10), np.uint8))
    seen = []
    for name, picture in (("wide", wide), ("large", Image.fromarray(large))):
        picture.convert("RGB").save(run / f"{name}.png")
        file = str(run / f"{name}.png")
        seen.append(predict.view(file, found.config, found.experiment)[..., 0])
    np.testing.assert_array_equal(seen[0], image)
    assert np.corrcoef(seen[1].ravel(), image.ravel())[0, 1] > 0.97


@pytest.mark.parametrize(
    "options, match",
    [
        (["{text}"], "is not a picture: use a PNG or JPEG"),
        (["/none.png"], "There is no file /none.png."),
        (["--top=11", "{text}"], "--top must be between 1 and 10, not 11"),
        ([], "arguments are required: IMAGE"),
    ],
)
def test_bad_pictures(run, tmp_path, monkeypatch, capsys, options, match):
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    argv = [f"--workdir={run}", *(o.format(text=text) for o in options)]
    assert in_process(monkeypatch, argv, predict) == 2
    assert re.search(match, capsys.readouterr().err)
