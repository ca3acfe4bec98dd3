# SPDX-License-Identifier: Apache-2.0
"""Networks to study: those that cannot be opened."""

from safetensors.numpy import save_file

import rn_jax
from experiments import analyze
from rn_jax.interop import to_torch


def test_imported_weights_that_cannot_be_studied(tmp_path, random_variables, capsys):
    """Of images of other channels, and without a classifier."""
    kwargs = {"stage_sizes": (1, 1), "features": (4, 8), "shortcut": "A_centered"}
    model = rn_jax.create_model("resnet20", **kwargs)
    weights = to_torch(model, random_variables(model, (8, 8, 3)))
    headless = {k: v for k, v in weights.items() if not k.startswith("linear.")}
    file = tmp_path / "w.safetensors"
    argv = ["--model=resnet20", f"--weights={file}", f"--model_kwargs={kwargs}"]
    for content, says in (
        (weights, "for images of 3 channels, but those of digits have 1: name a data"),
        (headless, "have no classifier, so their error cannot be measured"),
    ):
        save_file(content, file)
        out = tmp_path / "out"
        assert analyze.main([*argv, "--dataset=digits", f"--out={out}"]) == 2
        said = capsys.readouterr().err
        assert says in said and said.startswith("rn_jax: ") and said.count("\n") == 1
        assert not out.exists()
