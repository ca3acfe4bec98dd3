# SPDX-License-Identifier: Apache-2.0
"""Path lengths by exact sums, and the gradient along single paths."""

import itertools
import math

import jax
import numpy as np
import pytest

from rn_jax.analysis import paths
from rn_jax.models.resnet import ResNet

IMAGE = (8, 8, 3)


@pytest.mark.parametrize("blocks", [1, 5, 54])
def test_lengths_of_all_paths_are_binomial(blocks):
    exact = [math.comb(blocks, k) / 2**blocks for k in range(blocks + 1)]
    found = paths.length_distribution(np.full(blocks, 0.5))
    np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_shares_that_the_paper_gives():
    found = paths.length_distribution(np.full(54, 0.5))
    assert paths.share(found, 19, 35) == pytest.approx(0.98017, abs=5e-6)
    assert paths.share(found, 20, 34) == pytest.approx(0.95978, abs=5e-6)
    assert paths.share(found, 5, 17) == pytest.approx(0.0045367, abs=5e-8)
    of_23 = paths.length_distribution(np.full(23, 0.5))
    assert paths.share(of_23, 5, 17) == pytest.approx(0.99339, abs=5e-6)


def test_lengths_in_stochastic_depth_by_enumeration():
    p = [0.9, 0.7, 0.5, 0.2]
    expected = np.zeros(5)
    for taken in itertools.product((0, 1), repeat=4):
        chances = np.where(taken, p, 1 - np.array(p))
        expected[sum(taken)] += math.prod(chances)
    np.testing.assert_allclose(paths.length_distribution(p), expected, rtol=1e-12)


def test_paths_that_survive_by_enumeration():
    every = list(itertools.product((0, 1), repeat=5))
    for deleted in ([], [1], [0, 3], [0, 2, 4], range(5)):
        left = [path for path in every if not any(path[i] for i in deleted)]
        assert paths.surviving_share(len(deleted)) == len(left) / len(every)


def test_share_by_hand():
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    assert paths.share(weights, 1, 2) == pytest.approx(0.5)
    assert paths.share(weights, 2, 9) == pytest.approx(0.7)


@pytest.mark.parametrize(
    "weights, least, interval",
    [
        ([0, 0, 1, 0], 0.95, (2, 2)),
        ([1, 1, 1, 1], 0.5, (0, 1)),
        ([1, 2, 3, 4], 0.7, (2, 3)),
        ([1, 2, 3, 4], 0.71, (1, 3)),
        ([5, 1, 1, 5], 0.95, (0, 3)),
    ],
)
def test_shortest_interval_by_hand(weights, least, interval):
    assert paths.shortest_interval(np.array(weights, float), least) == interval


def test_drawn_paths_have_the_length_and_take_every_block_alike():
    rng = np.random.default_rng(0)
    drawn = paths.draw_paths(rng, 6, 2, 3000)
    assert drawn.shape == (6, 3000) and drawn.dtype == np.float32
    assert set(np.unique(drawn)) == {0, 1}
    assert (drawn.sum(axis=0) == 2).all()
    pairs = {tuple(np.flatnonzero(path)) for path in drawn.T}
    assert len(pairs) == 15  # all of them
    # 1000 expected of each block, with a deviation of 26.
    assert np.abs(drawn.sum(axis=1) - 1000).max() < 120
    assert paths.draw_paths(rng, 4, 0, 3).sum() == 0
    assert paths.draw_paths(rng, 4, 4, 3).sum() == 12


# --- The gradient ---------------------------------------------------------------------

MODEL = ResNet((2, 1), num_classes=3, features=(4, 8), shortcut="B")


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(8, *IMAGE)),
        "label": rng.integers(0, 3, 8).astype(np.int32),
    }


def losses(variables, images, labels):
    """Cross-entropy of each example, from the logits by NumPy's formula."""
    logits = MODEL.apply(variables, images, train=False)
    chosen = jax.numpy.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.numpy.log(jax.numpy.exp(logits).sum(axis=1)) - chosen


def test_norms_of_paths_enumerated(x64, random_variables, batch):
    """A path for each example; the gradients of all paths add up to the true one."""
    variables = random_variables(MODEL, IMAGE, "float64")
    gates = np.ones(3)
    path_gradient = paths.make_path_gradient(model=MODEL, preprocess=lambda x: x)
    every = np.array(list(itertools.product((0.0, 1.0), repeat=3))).T  # [3, 8]
    norms = np.asarray(path_gradient(variables, gates, batch, every))

    @jax.jit
    def one_path(path):
        def loss(images):
            logits = MODEL.apply(variables, images, train=False, paths=path)
            return losses_of(logits)

        def losses_of(logits):
            labels = batch["label"]
            chosen = logits[np.arange(8), labels]
            return (jax.numpy.log(jax.numpy.exp(logits).sum(axis=1)) - chosen).sum()

        return jax.grad(loss)(batch["image"])

    gradients = [np.asarray(one_path(path)) for path in every.T]
    expected = [np.linalg.norm(gradients[i][i]) for i in range(8)]
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    assert len(set(np.round(norms, 12))) == 8

    def total(images):
        return losses(variables, images, batch["label"]).sum()

    true = jax.grad(total)(batch["image"])
    np.testing.assert_allclose(sum(gradients), true, rtol=0, atol=1e-12)
    whole = path_gradient(variables, gates, batch, None)
    by_example = np.linalg.norm(np.asarray(true).reshape(8, -1), axis=1)
    np.testing.assert_allclose(whole, by_example, rtol=1e-5)


def test_norms_too_small_to_square(random_variables, batch):
    variables = random_variables(MODEL, IMAGE)
    batch["image"] = batch["image"].astype("float32")

    def norms(scale):
        gradient = paths.make_path_gradient(
            model=MODEL, preprocess=lambda x: x * np.float32(scale)
        )
        # The norm is by the normalised image, whatever made it.
        head = jax.tree.map(lambda a: a, variables)
        head["params"]["head"]["kernel"] = head["params"]["head"]["kernel"] * scale
        return np.asarray(gradient(head, np.ones(3, np.float32), batch, None))

    tiny = norms(np.float32(1e-25))
    assert (tiny > 1e-30).all() and (tiny < 1e-20).all()
