# SPDX-License-Identifier: Apache-2.0
"""All studies, on networks of every family."""

import json

import pytest
from style import check_style

from experiments.studies import STUDIES, do, report
from rn_jax.models.alexnet import AlexNet
from rn_jax.models.densenet import DenseNet
from rn_jax.models.highway import HighwayMLP
from rn_jax.models.resnet import PlainLayer, ResNet
from rn_jax.models.vgg import VGG

PLAIN = ResNet((2, 2), num_classes=3, features=(4, 8), block=PlainLayer)
NO_PATHS = {"path_lengths", "path_gradients", "combined_features"}
NO_PATHS |= {"shortcut_gradient"}
CONSTANT = {"gate_ensemble"}  # of networks trained with stochastic depth
OF_RUNS = {"short_paths", "gradient_magnitude"}


def test_studies_are_found_in_the_order_of_the_report():
    assert [study.order for study in STUDIES.values()] == list(range(1, 18))
    assert (next(iter(STUDIES)), list(STUDIES)[-1]) == (
        "delete_one",
        "branch_weights",
    )


FAMILIES = {
    "plain": (PLAIN, NO_PATHS | {"feature_reuse"}),
    "VGG": (
        VGG((1, 3), num_classes=3, features=(4, 8), stem="small"),
        NO_PATHS | {"feature_reuse", "deepen"},
    ),
    "DenseNet": (
        DenseNet((2, 2), num_classes=3, growth_rate=4),
        {"permute", "deepen", "shortcut_gradient"},
    ),
    "highway": (
        HighwayMLP(depth=4, width=6, num_classes=3),
        {"feature_reuse", "combined_features", "deepen"},
    ),
    "AlexNet": (
        AlexNet(num_classes=3, stem="small"),
        set(STUDIES) - {"gradient_by_layer"},
    ),
}


def lab_of(family, make_lab):
    model, _ = FAMILIES[family]
    return make_lab(model, (32, 32, 3) if isinstance(model, AlexNet) else (8, 8, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_which_studies_a_family_has(family, make_lab):
    lab, (_, missing) = lab_of(family, make_lab), FAMILIES[family]
    refused = {name for name, s in STUDIES.items() if s.missing(lab.subject)}
    assert refused == missing | OF_RUNS | CONSTANT


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] * (f != "VGG")) for f in FAMILIES],
)
def test_studies_of_every_family(family, make_lab, tmp_path, saved_figures):
    lab = lab_of(family, make_lab)
    reasons = {name: study.missing(lab.subject) for name, study in STUDIES.items()}
    for name, why in reasons.items():
        if why is None:
            json.dumps(do(name, lab, command="a command"), allow_nan=False)
    found = {"untrained": lab.earlier}
    report.write(tmp_path, list(STUDIES), found, {"untrained": reasons}, command="")
    text = (tmp_path / "report.md").read_text()
    assert text.count("Not done: ") == sum(why is not None for why in reasons.values())
    assert {path.stem for path in tmp_path.glob("*.png")} == set(lab.earlier)
    for figure in saved_figures[-len(lab.earlier) :]:
        check_style(figure)
    if "delete_one" in lab.earlier:
        for block, mark in zip(
            lab.model.blocks, lab.earlier["delete_one"]["blocks"], strict=True
        ):
            assert mark["deletable"] == block.skippable
            assert (mark["error_percent"] is None) == (not block.skippable)
