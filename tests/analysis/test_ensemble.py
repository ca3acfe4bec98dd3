# SPDX-License-Identifier: Apache-2.0
"""Averaged predictions of drawn networks."""

from functools import partial

import jax
import numpy as np
import pytest

from rn_jax import StochasticDepth, survival_probs
from rn_jax.analysis import ensemble
from rn_jax.models.resnet import ResNet
from rn_jax.models.swapout import Swapout

# Three networks, two images, two classes.
PREDICTIONS = np.array(
    [[[0.9, 0.1], [0.4, 0.6]], [[0.4, 0.6], [0.3, 0.7]], [[0.3, 0.7], [0.6, 0.4]]]
)


@pytest.mark.parametrize(
    "size, errors", [(1, [0.0, 50.0, 100.0]), (2, [0.0]), (3, [0.0]), (4, [])]
)
def test_errors_of_ensembles_by_hand(size, errors):
    """The first two average to (0.65, 0.35) and (0.35, 0.65), all to 0.53 and 0.43."""
    labels = np.array([0, 1])
    assert ensemble.group_errors(PREDICTIONS, labels, size) == errors


@pytest.mark.parametrize(
    "settings",
    [
        StochasticDepth(0.4),
        StochasticDepth.preset("timm", last_survival=0.4),
        StochasticDepth(0.4, schedule="uniform", granularity="subset"),
        StochasticDepth(num_open=2, schedule="uniform"),
    ],
    ids=["batch", "example", "subset", "num_open"],
)
def test_networks_are_drawn_as_in_training(settings):
    drawn = ensemble.draw_networks(1, settings, 4, 400)
    probs = np.asarray(survival_probs(settings, 4))
    assert drawn.shape == (400, 4)
    np.testing.assert_allclose((drawn != 0).mean(axis=0), probs, atol=0.1)
    inverse = settings.scaling == "training"
    for value, p in zip(drawn.T, probs, strict=True):
        assert set(np.round(value, 5)) <= {0, np.round(1 / p if inverse else 1, 5)}
    if settings.num_open:
        assert set((drawn != 0).sum(axis=1)) == {2}
    np.testing.assert_array_equal(ensemble.draw_networks(1, settings, 4, 3), drawn[:3])
    assert np.any(ensemble.draw_networks(2, settings, 4, 400) != drawn)


def scaled(pixels):
    return pixels.astype("float32") / 255


def test_predictions_are_those_of_the_network(random_variables):
    model = ResNet((2,), num_classes=3, features=(4,))
    variables = random_variables(model, (6, 6, 3))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 6, 6, 3), dtype=np.uint8)

    predict = ensemble.make_probabilities(model=model, preprocess=scaled)
    apply = jax.jit(
        lambda x, gates: model.apply(variables, x, train=False, gates=gates)
    )
    for gates in (np.array([1, 0], "float32"), np.array([0.5, 1], "float32")):
        found = predict(variables, gates, images)
        for batch, mine in zip(images, found, strict=True):
            logits = np.asarray(apply(scaled(batch), gates), "float64")
            expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(mine, expected, rtol=1e-4)


def test_swapout_draws_its_masks_anew_in_every_batch(random_variables):
    model = ResNet((2,), num_classes=3, features=(4,), block=Swapout)
    variables = random_variables(model, (6, 6, 3))
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    predict = ensemble.make_probabilities(model=model, preprocess=scaled)
    run = partial(predict, variables, np.ones(2, "float32"), np.stack([batch, batch]))
    first, second = run(jax.random.key(0))
    assert np.all(np.any(first != second, axis=1))
    np.testing.assert_array_equal(run(jax.random.key(0)), [first, second])
    assert np.any(run(jax.random.key(1))[0] != first)
    at_test = run()
    np.testing.assert_array_equal(at_test[0], at_test[1])
