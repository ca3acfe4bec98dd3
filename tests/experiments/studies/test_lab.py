# SPDX-License-Identifier: Apache-2.0
"""The network and test images that studies use."""

import jax
import numpy as np
import pytest

from experiments.studies import STUDIES
from rn_jax import InputError, StochasticDepth
from rn_jax.models.resnet import ResNet


@pytest.mark.parametrize(
    "scaling, factors, gates, says",
    [
        ("test", "keep", [0.75, 0.5], "survival probabilities kept as factors"),
        ("test", "drop", [1, 1], "survival probabilities dropped"),
        ("training", "keep", [1, 1], "all 1"),
        ("none", "keep", [1, 1], "all 1"),
    ],
)
def test_gates_of_the_whole_network(scaling, factors, gates, says, make_lab):
    depth = StochasticDepth(scaling=scaling)
    model = ResNet((2,), num_classes=3, features=(4,), stochastic_depth=depth)
    lab = make_lab(model, factors=factors)
    np.testing.assert_allclose(lab.gates, gates)
    assert lab.facts["gates"] == says


def test_nothing_is_compiled_again_between_lesions(make_lab):
    lab = make_lab(ResNet((3, 2), num_classes=3, features=(4, 8)))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiled.append(event) if "backend_compile" in event else None
        )
    )
    STUDIES["permute"].measure(lab)
    assert lab.baseline is not None and compiled
    compiled.clear()
    assert len(lab.deletions) == 5
    for name in ("delete_many", "permute", "depth_dial"):
        STUDIES[name].measure(lab)
    assert not compiled


def test_images_are_spread_over_the_test_set(make_lab):
    model = ResNet((1,), num_classes=3, features=(4,))
    lab = make_lab(model, images=10)
    images = np.asarray(lab.batches["image"])[np.asarray(lab.batches["mask"])]
    np.testing.assert_array_equal(images, lab.subject.test.images[::4])
    assert lab.test_images == "10 of 40 test images"
    with pytest.raises(InputError, match="--images is 41, but noise has 40 test"):
        make_lab(model, images=41)
