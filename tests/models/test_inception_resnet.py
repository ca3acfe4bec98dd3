# SPDX-License-Identifier: Apache-2.0
"""Inception-ResNet-v2: the whole network by NumPy, and its size by its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_numpy import np_conv, np_norm

import rn_jax
from rn_jax import InputError, create_model
from rn_jax.models.inception_resnet import InceptionResNetV2

SMALL = {"stage_sizes": (2, 1, 1), "width": 1 / 16, "num_classes": 3}


def np_pool(x, reduce=np.max, stride=2, around=0):
    """3x3 windows; those that reach past the border hold the pixels inside."""
    rows = [
        slice(max(i - around, 0), i - around + 3)
        for i in range(0, x.shape[1] + 2 * around - 2, stride)
    ]
    cells = [[reduce(x[:, i, j], axis=(1, 2)) for j in rows] for i in rows]
    return np.transpose(cells, (2, 0, 1, 3))


def by_numpy(variables, images, gates, *, small=False):
    """TF-Slim's definition line by line, with each residual times its gate."""
    unstacked = rn_jax.unstack(variables)
    gates = iter(gates)

    def at(place):
        trees = [unstacked[c] for c in ("params", "batch_stats")]
        for name in place.split("/"):
            trees = [tree[name] for tree in trees]
        return trees

    def unit(x, place, stride=1, *, padded=True):
        p, s = at(place)
        y = np_conv(x, p["conv"], stride, padded=padded)
        return np.maximum(np_norm(y, p["bn"], s["bn"]), 0)

    def tower(x, place, number, length, stride=1):
        for j in range(1, length):
            x = unit(x, f"{place}/tower{number}_conv{j}")
        last = f"{place}/tower{number}_conv{length}"
        return unit(x, last, stride, padded=stride == 1)

    def mixed(x, place, lengths, stride, pooled):
        found = [tower(x, place, i, n, stride) for i, n in enumerate(lengths, start=1)]
        return np.concatenate([*found, *pooled], axis=-1)

    def residual(x, place, lengths, scale):
        y = mixed(x, place, lengths, 1, [])
        up = unstacked["params"]
        for name in place.split("/"):
            up = up[name]
        return x + next(gates) * scale * np_conv(y, up["up"])

    def relu(x):
        return np.maximum(x, 0)

    x = unit(images, "conv1", 1 if small else 2, padded=small)
    x = unit(unit(x, "conv2", padded=small), "conv3")
    x = x if small else np_pool(x)
    x = unit(unit(x, "conv4"), "conv5", padded=small)
    x = x if small else np_pool(x)
    average = unit(np_pool(x, np.mean, 1, around=1), "mixed_5b/pooled")
    x = mixed(x, "mixed_5b", (1, 2, 3), 1, [average])
    for block in ("block01", "block02"):
        x = relu(residual(x, f"stage1/{block}", (1, 2, 3), 0.17))
    x = mixed(x, "mixed_6a", (1, 3), 2, [np_pool(x)])
    x = relu(residual(x, "stage2/block01", (1, 3), 0.10))
    x = mixed(x, "mixed_7a", (2, 2, 3), 2, [np_pool(x)])
    x = relu(residual(x, "stage3/block01", (1, 3), 0.20))
    x = residual(x, "stage4/block01", (1, 3), 1.0)
    x = unit(x, "last_conv").mean((1, 2))
    head = unstacked["params"]["head"]
    return x @ head["kernel"] + head["bias"]


@pytest.mark.parametrize(
    ("stem", "size"),
    [pytest.param("small", 16, marks=pytest.mark.slow), ("imagenet", 75)],
)
def test_network_by_numpy(x64, random_variables, stem, size):
    """75 pixels, the least, become 37, 35, 17, 15, 7, 3 and 1."""
    model = InceptionResNetV2(stem=stem, **SMALL)
    variables = random_variables(model, (size, size, 3))
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, "float64"), variables)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3))
    gates = np.array([1, 0, 1, 0.5, 1])
    apply = jax.jit(partial(model.apply, train=False))
    found = apply(variables, images, gates=gates)
    expected = by_numpy(variables, images, gates, small=stem == "small")
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * scale)
    # A closed block is not computed.
    broken = rn_jax.unstack(variables)
    closed = broken["params"]["stage1"]["block02"]
    broken["params"]["stage1"]["block02"] = jax.tree.map(lambda w: w * np.nan, closed)
    again = apply(rn_jax.stack(broken, model), images, gates=gates)
    np.testing.assert_array_equal(again, found)


def test_maps_of_the_whole_network():
    """The grids of the paper: 35x35, 17x17 and 8x8, with the channels of the code."""
    model = create_model("inception_resnet_v2")
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), "float32")
    run = partial(
        model.init_with_output, train=False, mutable=True, capture_intermediates=True
    )
    logits, variables = jax.eval_shape(run, {"params": jax.random.key(0)}, image)
    maps = variables["intermediates"]
    found = {n: maps[n]["__call__"][0].shape[1:] for n in maps if n.startswith("mixed")}
    assert found == {
        "mixed_5b": (35, 35, 320),
        "mixed_6a": (17, 17, 1088),
        "mixed_7a": (8, 8, 2080),
    }
    assert maps["last_conv"]["__call__"][0].shape == (1, 8, 8, 1536)
    assert logits.shape == (1, 1000)
    sizes = [sum(b.stage == s for b in model.blocks) for s in (1, 2, 3, 4)]
    assert sizes == [10, 20, 9, 1]


def test_parameters_by_the_authors_code():
    """Convolutions without biases but those back to all channels, and BatchNorms.

    With 1001 classes, as in the released weights, there are 1,537 more.
    """

    def unit(k, before, after):
        return k * before * after + 2 * after

    def block(channels, inner, *units):
        convolutions = sum(unit(*u) for u in units)
        return convolutions + inner * channels + channels

    stem = [(9, 3, 32), (9, 32, 32), (9, 32, 64), (1, 64, 80), (9, 80, 192)]
    mixed_5b = [(1, 192, 96), (1, 192, 48), (25, 48, 64), (1, 192, 64), (9, 64, 96)]
    mixed_5b += [(9, 96, 96), (1, 192, 64)]
    mixed_6a = [(9, 320, 384), (1, 320, 256), (9, 256, 256), (9, 256, 384)]
    mixed_7a = [(1, 1088, 256), (9, 256, 384), (1, 1088, 256), (9, 256, 288)]
    mixed_7a += [(1, 1088, 256), (9, 256, 288), (9, 288, 320)]
    total = sum(unit(*u) for u in [*stem, *mixed_5b, *mixed_6a, *mixed_7a])
    total += 10 * block(
        *(320, 128, (1, 320, 32), (1, 320, 32), (9, 32, 32)),
        *((1, 320, 32), (9, 32, 48), (9, 48, 64)),
    )
    total += 20 * block(
        *(1088, 384, (1, 1088, 192), (1, 1088, 128), (7, 128, 160), (7, 160, 192)),
    )
    total += 10 * block(
        *(2080, 448, (1, 2080, 192), (1, 2080, 192), (3, 192, 224), (3, 224, 256)),
    )
    total += unit(1, 2080, 1536) + 1536 * 1000 + 1000
    assert total == 55_843_464
    assert rn_jax.models.MODELS["inception_resnet_v2"].params == total


def test_what_it_rejects():
    with pytest.raises(InputError, match="stage_sizes must be three numbers of blocks"):
        InceptionResNetV2(stage_sizes=(1, 1))
    images = jnp.zeros((1, 74, 74, 3))
    with pytest.raises(InputError, match="takes images of at least 3 pixels a side"):
        jax.eval_shape(
            partial(InceptionResNetV2(**SMALL).init, train=False),
            jax.random.key(0),
            images,
        )
