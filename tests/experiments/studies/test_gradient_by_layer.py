# SPDX-License-Identifier: Apache-2.0
"""The gradient by layer: measurement, figure and text."""

import jax
import numpy as np
import pytest

from experiments.studies import subject
from experiments.studies.gradient_by_layer import STUDY, ratio
from rn_jax.errors import InputError
from rn_jax.models.normalization import Identity
from rn_jax.models.resnet import ResNet


def test_start_is_another_network_than_the_end(make_lab):
    lab = make_lab(ResNet((2,), num_classes=3, features=(4,)))
    found = STUDY.measure(lab)
    layers = ["stem_conv", *(f"stage1/block0{b}/conv{c}" for b in "12" for c in "12")]
    for name in ("start", "end"):
        assert list(found[name]["weights"]) == [*layers, "head"]
        assert list(found[name]["outputs"]) == layers
    assert found["start"] != found["end"]
    assert STUDY.measure(lab) == found


def test_ratio_is_of_the_first_layers_over_the_last():
    """By outputs; by weights if there are none."""
    norms = {f"layer{i}": 10.0 ** (i - 20) for i in range(20)}
    assert ratio({"outputs": norms, "weights": {}}) == pytest.approx(1e-18)
    assert ratio({"outputs": {}, "weights": norms}) == pytest.approx(1e-18)
    cut = {**norms, "layer0": 0.0, "layer1": 0.0}  # the first tenth
    assert ratio({"outputs": cut, "weights": {}}) == 0


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (
            1e5,
            "1e+05 times that of the last ones: it explodes. By weights, it is 1e+05",
        ),
        (1e-5, "1e-05 times that of the last ones: it vanishes"),
        (2.0, "about as large as in the last ones. By weights, it is 2 in the first"),
        (0.0, "no gradient reaches any layer"),
    ],
)
def test_words_and_figure(first, says):
    norms = {"stem": first, "head": 1.0 if first else 0.0}
    last = {"last": 1.0 if first else 0.0}
    one = {"weights": norms, "outputs": {"stem": first, **last}}
    other = {"weights": {"stem": 1.0, "head": 1.0}, "outputs": {"stem": 1.0}}
    result = {"start": one, "end": other, "source": "runs/a"}
    assert says in STUDY.describe(result) and "At the end" in STUDY.describe(result)
    weights, outputs = STUDY.draw({"net": result}).axes
    assert len(weights.get_lines()) == len(outputs.get_lines()) == 2
    untrained = {**result, "source": subject.UNTRAINED}
    assert "At the end" not in STUDY.describe(untrained)
    assert len(STUDY.draw({"net": untrained}).axes[0].get_lines()) == 1
    if first:
        assert list(weights.get_lines()[0].get_ydata()) == [first, 1]


def test_untrained_network_by_name():
    kwargs = {"norm": "none", "kernel_init": "small_normal", "stage_sizes": (1, 1, 1)}
    found = subject.find(model="plain20", dataset="digits", model_kwargs=kwargs)
    assert found.label.startswith("plain20-norm=none-kernel_init=small_normal")
    assert found.model.norm is Identity and "batch_stats" not in found.variables
    kernel = jax.tree.leaves(found.variables["params"]["stage2"])[0]
    assert np.std(kernel) == pytest.approx(0.01, rel=0.1)
    with pytest.raises(InputError, match='kernel_init must be "default", "he_normal"'):
        subject.find(model="plain20", dataset="digits", model_kwargs={"kernel_init": 1})
