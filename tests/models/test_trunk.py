# SPDX-License-Identifier: Apache-2.0
"""Two layouts of the same blocks: stacked for speed, one subtree each for surgery."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

import rn_jax
from rn_jax import InputError, block_variables
from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.resnet import BasicBlock, PlainLayer, ResNet
from rn_jax.models.trunk import block_infos, block_name

IMAGE = (6, 6, 3)
MODELS = {
    "resnet": ResNet((3, 2), num_classes=3, features=(4, 8)),
    "one block a stage": ResNet((1, 1), num_classes=3, features=(4, 8)),
    "projections": ResNet((2, 3), num_classes=3, features=(4, 8), shortcut="C"),
    "plain": ResNet(
        (3, 2), num_classes=3, features=(4, 8), block=PlainLayer, shortcut=None
    ),
    "ten and more": ResNet((12,), num_classes=3, features=(4,)),
}


@pytest.fixture(params=MODELS)
def network(request, random_variables):
    model = MODELS[request.param]
    return model, random_variables(model, IMAGE)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_round_trip_is_exact(network):
    model, variables = network
    unstacked = rn_jax.unstack(variables)
    assert_equal(rn_jax.stack(unstacked, model), variables)
    assert_equal(rn_jax.unstack(unstacked), unstacked)
    for collection in ("params", "batch_stats"):
        names = [
            f"{stage}/{block}"
            for stage in sorted(unstacked[collection])
            if stage.startswith("stage")
            for block in sorted(unstacked[collection][stage])
        ]
        assert names == [b.name for b in model.blocks]
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (variables, unstacked)
    ]
    assert sizes[0] == sizes[1]


def test_variables_of_one_block(network):
    model, variables = network
    unstacked = rn_jax.unstack(variables)
    for info in model.blocks:
        stage = f"stage{info.stage}"
        sizes = [b.index for b in model.blocks if b.stage == info.stage]
        expected = {}
        for collection in ("params", "batch_stats"):
            tree = variables[collection][stage]
            place = info.index - sizes[0]
            if "first" in tree:
                place -= 1
            if place < 0:
                expected[collection] = tree["first"]
            else:
                expected[collection] = jax.tree.map(lambda a: a[place], tree["blocks"])
        assert_equal(block_variables(variables, info.index), expected)
        assert_equal(block_variables(unstacked, info.index), expected)
    for index in (-1, model.num_blocks):
        with pytest.raises(IndexError, match=f"There are {model.num_blocks} blocks"):
            block_variables(variables, index)


def test_surgery_leaves_the_original_whole(network):
    model, variables = network
    last = model.num_blocks - 1
    before = jax.tree.map(np.copy, variables)
    unstacked = rn_jax.unstack(variables)
    unstacked["params"]["stem_conv"].clear()
    for info in model.blocks:
        stage, block = info.name.split("/")
        unstacked["params"][stage][block].clear()
    for index in (0, last):
        block_variables(variables, index)["params"].clear()
    assert_equal(before, variables)


def test_stack_with_another_number_of_blocks(network):
    model, variables = network
    unstacked = rn_jax.unstack(variables)
    stage = f"stage{model.blocks[-1].stage}"
    removed = sorted(unstacked["params"][stage])[-1]
    for collection in ("params", "batch_stats"):
        del unstacked[collection][stage][removed]
    n = model.stage_sizes[-1]
    with pytest.raises(InputError, match=f"^{stage} has {n - 1} blocks, the model {n}"):
        rn_jax.stack(unstacked, model)


def test_stack_of_what_is_stacked_already(network):
    model, variables = network
    with pytest.raises(InputError, match="stacked already"):
        rn_jax.stack(variables, model)


@pytest.mark.parametrize("size", [1, 9, 10, 99, 100, 200])
def test_names_sort(size):
    names = [block_name(place, size) for place in range(1, size + 1)]
    assert names == sorted(names)
    assert len(set(map(len, names))) == 1
    assert names[0] in ("block01", "block001")


def test_block_infos():
    infos = block_infos((2, 1, 2), (4, 4, 8), (1, 2, 1), 4, has_shortcut=True)
    assert [b.name for b in infos] == [
        "stage1/block01",
        "stage1/block02",
        "stage2/block01",
        "stage3/block01",
        "stage3/block02",
    ]
    assert [b.index for b in infos] == [0, 1, 2, 3, 4]
    assert [b.stage for b in infos] == [1, 1, 2, 3, 3]
    # A stride changes the shape, more channels do, and a wider stem does.
    assert [b.same_shape for b in infos] == [True, True, False, False, True]
    assert all(b.skippable for b in infos)
    (info,) = block_infos((1,), (4,), (1,), 3, has_shortcut=False)
    assert not info.same_shape and not info.skippable


# --- The layout is only a layout ------------------------------------------------------


def network_by_single_blocks(variables, images, order):
    """Pooled features, block after block in that order, none of them in a scan."""
    norm = partial(BatchNorm, use_running_average=True)

    def part(module, name, x):
        mine = {c: v[name] for c, v in variables.items() if name in v}
        return module.apply(mine, x)

    x = part(Conv(4), "stem_conv", images)
    x = nn.relu(part(norm(), "stem_bn", x))
    for index in order:
        widens = index == 3
        block = BasicBlock(
            4 if index < 3 else 8, 2 if widens else 1, "A", Conv, norm, nn.relu
        )
        x = jax.jit(partial(block.apply, train=False))(
            block_variables(variables, index), x
        )
    return x.mean((1, 2))


def test_permuting_blocks_is_a_take(x64, random_variables):
    model = ResNet((3, 3), num_classes=None, features=(4, 8))
    variables = random_variables(model, IMAGE, "float64")
    images = np.random.default_rng(0).normal(size=(2, *IMAGE))
    run = jax.jit(partial(model.apply, train=False))
    straight = run(variables, images)
    np.testing.assert_allclose(
        straight,
        network_by_single_blocks(variables, images, range(6)),
        rtol=0,
        atol=1e-12,
    )

    permuted = {}
    for collection, tree in variables.items():
        permuted[collection] = dict(tree)
        for stage, order in (("stage1", [2, 0, 1]), ("stage2", [1, 0])):
            blocks = jax.tree.map(
                lambda a: jax.numpy.take(a, np.array(order), axis=0),
                tree[stage]["blocks"],
            )
            permuted[collection][stage] = {**tree[stage], "blocks": blocks}
    ours = run(permuted, images)
    expected = network_by_single_blocks(variables, images, [2, 0, 1, 3, 5, 4])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    assert np.abs(ours - straight).max() > 1e-3
