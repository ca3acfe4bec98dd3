# SPDX-License-Identifier: Apache-2.0
"""Lesions: against a network with its block removed, orders, and what is compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import np_conv, np_norm
from flax.core import freeze

from rn_jax import parallel, unstack
from rn_jax.analysis import lesion
from rn_jax.models.densenet import DenseNet
from rn_jax.models.highway import HighwayMLP
from rn_jax.models.preact import FullPreactivation
from rn_jax.models.resnet import PlainLayer, ResNet
from rn_jax.models.vgg import VGG

IMAGE = (8, 8, 3)
SMALL = ResNet((2, 3), num_classes=3, features=(4, 8))


def normalise(pixels):
    return pixels.astype(jnp.float32) / 64 - 2


def make_batches(n=12, per_batch=4, seed=0):
    """Three batches, the last of them half padding."""
    rng = np.random.default_rng(seed)
    shape = (n // per_batch, per_batch)
    mask = np.ones(shape, bool)
    mask[-1, per_batch // 2 :] = False
    return {
        "image": rng.integers(0, 256, (*shape, *IMAGE), dtype=np.uint8),
        "label": rng.integers(0, 3, shape).astype(np.int32),
        "mask": mask,
    }


# --- The authors' way: a list of blocks, of which some are taken out ------------------


def np_branch(x, params, stats, stride):
    y = np_norm(np_conv(x, params["conv1"], stride), params["bn1"], stats["bn1"])
    y = np_conv(np.maximum(y, 0), params["conv2"])
    return np_norm(y, params["bn2"], stats["bn2"])


def np_logits(variables, images, removed=(), order=(0, 1, 2, 3, 4)):
    """The network `SMALL` with its branches in an order, and without some of them."""
    tree = unstack(variables)
    params, moments = tree["params"], tree["batch_stats"]
    x = np_norm(
        np_conv(images, params["stem_conv"]), params["stem_bn"], moments["stem_bn"]
    )
    x = np.maximum(x, 0)
    for index, block in enumerate(SMALL.blocks):
        stage, name = SMALL.blocks[order[index]].name.split("/")
        stride = 1 if block.same_shape else 2
        shortcut = x[:, ::stride, ::stride]
        if stride == 2:  # zeros for the new channels
            shortcut = np.concatenate([shortcut, np.zeros_like(shortcut)], axis=-1)
        if index not in removed:
            parts = params[stage][name], moments[stage][name]
            shortcut = shortcut + np_branch(x, *parts, stride)
        x = np.maximum(shortcut, 0)
    head = params["head"]
    return x.mean((1, 2)) @ head["kernel"] + head["bias"]


LESIONS = [[], [0], [1], [2], [3], [4], [0, 3], [1, 2, 4], [0, 1, 2, 3, 4]]


def test_a_lesion_by_gates_is_the_network_without_the_block(random_variables):
    variables = random_variables(SMALL, IMAGE)
    batches = make_batches()
    images = np.asarray(normalise(batches["image"].reshape(-1, *IMAGE)), np.float64)
    labels, mask = batches["label"].ravel(), batches["mask"].ravel()
    count_errors = lesion.make_count_errors(model=SMALL, preprocess=normalise)
    run = jax.jit(partial(SMALL.apply, train=False))
    counts = set()
    for removed in LESIONS:
        expected = np_logits(variables, images, removed)
        gates = lesion.without(np.ones(5), removed)
        ours = run(variables, images.astype("float32"), gates=gates)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
        wrong = int(((expected.argmax(-1) != labels) & mask).sum())
        assert count_errors(variables, gates, batches) == wrong
        counts.add(wrong)
    assert len(counts) > 1  # it makes a difference which block is removed


def test_a_network_in_another_order(random_variables):
    variables = random_variables(SMALL, IMAGE)
    images = np.random.default_rng(1).normal(size=(3, *IMAGE))
    run = jax.jit(partial(SMALL.apply, train=False))
    trained = np_logits(variables, images)
    for order in ([1, 0, 2, 3, 4], [0, 1, 2, 4, 3], [1, 0, 2, 4, 3]):
        moved = lesion.reorder(jax.device_get(unstack(variables)), SMALL, order)
        expected = np_logits(variables, images, order=order)
        assert np.abs(expected - trained).max() > 1e-2
        ours = run(moved, images.astype("float32"))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
        frozen = lesion.reorder(freeze(unstack(variables)), SMALL, order)
        jax.tree.map(np.testing.assert_array_equal, frozen, moved)


def test_one_compiled_function_for_all_lesions_and_orders(random_variables):
    traced = []

    def preprocess(pixels):  # runs once for each program that is compiled
        traced.append(pixels.shape)
        return normalise(pixels)

    variables = random_variables(SMALL, IMAGE)
    unstacked = jax.device_get(unstack(variables))
    batches = make_batches()
    count_errors = lesion.make_count_errors(model=SMALL, preprocess=preprocess)
    for removed in LESIONS:
        count_errors(variables, lesion.without(np.ones(5), removed), batches)
    for scale in (0.5, 2.0):
        count_errors(variables, np.full(5, scale, np.float32), batches)
    order = lesion.reorder(unstacked, SMALL, [1, 0, 2, 4, 3])
    count_errors(order, np.ones(5, np.float32), batches)
    assert len(traced) == 1


# --- Which blocks ---------------------------------------------------------------------


def test_without_leaves_its_argument_alone():
    gates = np.array([0.9, 0.8, 0.7], np.float32)
    np.testing.assert_array_equal(lesion.without(gates, [1]), np.float32([0.9, 0, 0.7]))
    np.testing.assert_array_equal(gates, np.float32([0.9, 0.8, 0.7]))


def test_drawn_blocks_are_those_that_a_gate_acts_on():
    model = ResNet((2, 2), num_classes=3, features=(4, 8), block=PlainLayer)
    assert [b.skippable for b in model.blocks] == [True, True, False, True]
    rng = np.random.default_rng(0)
    draws = {tuple(lesion.draw_blocks(rng, model.blocks, 2)) for _ in range(60)}
    assert draws == {(0, 1), (0, 3), (1, 3)}
    with pytest.raises(ValueError):
        lesion.draw_blocks(rng, model.blocks, 4)


@pytest.mark.parametrize(
    "model, pairs",
    [
        (SMALL, {(0, 1), (3, 4)}),  # never the transition, block 2
        (VGG((1, 3), features=(4, 4), stem="small"), {(1, 2), (1, 3), (2, 3)}),
        (DenseNet((3,), growth_rate=4), set()),  # every layer has other inputs
        (HighwayMLP(depth=4, width=6), {(0, 1), (0, 2), (1, 2)}),
    ],
    ids=["ResNet", "VGG", "DenseNet", "Highway"],
)
def test_which_blocks_can_change_places(model, pairs, random_variables):
    unstacked = unstack(random_variables(model, IMAGE))
    assert set(lesion.interchangeable(model.blocks, unstacked)) == pairs


def test_preactivation_blocks_of_other_variables_stay(random_variables):
    model = ResNet((3, 2), num_classes=3, features=(4, 8), block=FullPreactivation)
    unstacked = unstack(random_variables(model, IMAGE))
    first, second = (unstacked["params"]["stage1"][f"block0{i}"] for i in (1, 2))
    alike = jax.tree.structure(first) == jax.tree.structure(second)
    pairs = lesion.interchangeable(model.blocks, unstacked)
    assert ((0, 1) in pairs) == alike
    assert (1, 2) in pairs and (2, 4) not in pairs


# --- Orders ---------------------------------------------------------------------------


def test_reordered_network_applies_its_blocks_in_that_order(random_variables):
    model = ResNet((3,), num_classes=3, features=(4,))
    variables = random_variables(model, IMAGE)
    unstacked = jax.device_get(unstack(variables))
    before = jax.tree.map(np.copy, unstacked)
    moved = lesion.reorder(unstacked, model, [2, 0, 1])
    for place, block in enumerate([2, 0, 1]):
        jax.tree.map(
            lambda new, old, p=place, b=block: np.testing.assert_array_equal(
                new[p], old[b]
            ),
            moved["params"]["stage1"]["blocks"],
            jax.device_get(variables["params"]["stage1"]["blocks"]),
        )
    assert jax.tree.structure(moved) == jax.tree.structure(dict(variables))
    jax.tree.map(np.testing.assert_array_equal, unstacked, before)
    # Back again, it is the trained network.
    back = lesion.reorder(jax.device_get(unstack(moved)), model, [1, 2, 0])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(back), dict(variables))


def test_swaps_stay_within_the_pairs():
    rng = np.random.default_rng(0)
    pairs = [(0, 1), (1, 2), (0, 2), (4, 5)]
    orders = [lesion.draw_order(rng, 7, pairs, 3) for _ in range(100)]
    for order in orders:
        assert sorted(order) == list(range(7))
        assert order[3] == 3 and order[6] == 6
        assert set(order[:3]) == {0, 1, 2}
    assert len({tuple(order) for order in orders}) == 6  # all the odd ones
    np.testing.assert_array_equal(lesion.draw_order(rng, 3, pairs[:1], 1), [1, 0, 2])


@pytest.mark.parametrize(
    "order, tau",
    [
        ([0, 1, 2, 3], 1.0),
        ([3, 2, 1, 0], -1.0),
        ([1, 0, 2, 3], 1 - 4 * 1 / 12),  # one of six pairs changed sides
        ([3, 1, 2, 0], 1 - 4 * 5 / 12),  # the outer two: five of six
        ([1, 0, 3, 2], 1 - 4 * 2 / 12),
    ],
)
def test_kendall_tau_by_hand(order, tau):
    assert lesion.kendall_tau(order) == pytest.approx(tau)


def test_closing_order():
    blocks = ResNet((2, 2), num_classes=3, features=(4, 8), block=PlainLayer).blocks
    assert lesion.closing_order([0.9, 0.8, 0.1, 0.5], blocks) == [3, 1, 0]
    assert lesion.closing_order([1, 1, 1, 1], blocks) == [3, 1, 0]  # from the end


def test_examples_split_over_devices_count_alike(random_variables):
    variables = random_variables(SMALL, IMAGE)
    devices = jax.devices()[:2]
    count = lesion.make_count_errors(model=SMALL, preprocess=normalise)
    batches = make_batches()
    split = parallel.split_examples(batches, devices, axis=1)
    assert len(split["image"].sharding.device_set) == 2
    everywhere = parallel.replicate(variables, devices)
    for removed in ([], [1], [0, 4]):
        gates = lesion.without(np.ones(5), removed)
        assert count(everywhere, gates, split) == count(variables, gates, batches)


def test_gates_of_survival_are_scaled_lesions(random_variables):
    # A kept factor enters as it is: halving all branches is the gates' one half.
    variables = random_variables(SMALL, IMAGE)
    images = normalise(make_batches()["image"][0])
    run = jax.jit(partial(SMALL.apply, train=False))
    halved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf * 0.5
            if [p.key for p in path][-2:] in (["bn2", "scale"], ["bn2", "bias"])
            else leaf
        ),
        variables,
    )
    ours = run(variables, images, gates=np.full(5, 0.5, np.float32))
    np.testing.assert_allclose(ours, run(halved, images), rtol=1e-5, atol=1e-5)


def test_64_bits_change_no_error(same_in_64_bits, random_variables):
    count = lesion.make_count_errors(model=SMALL, preprocess=normalise)
    variables, gates = random_variables(SMALL, IMAGE), np.ones(5, "float32")
    batches = jax.tree.map(np.asarray, make_batches())
    same_in_64_bits(lambda: count(variables, gates, batches))
