# SPDX-License-Identifier: Apache-2.0
"""What blocks carry and add, by NumPy and SciPy."""

import jax
import numpy as np
import pytest
from by_numpy import np_conv, np_norm
from scipy import stats

from rn_jax import unstack
from rn_jax.analysis import combination
from rn_jax.models.densenet import DenseNet
from rn_jax.models.resnet import ResNet

IMAGE = (6, 6, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, *IMAGE), dtype=np.uint8)


def normalise(pixels):
    return (pixels.astype("float32") - 128) / 64


def conv(x, layer, name):
    return np_conv(x, layer["params"][name])


def norm(x, layer, name):
    return np_norm(x, layer["params"][name], layer["batch_stats"][name])


def part(variables, *names):
    found = variables
    for name in names:
        found = {c: tree[name] for c, tree in found.items() if name in tree}
    return found


def summed(variables, gates):
    x = np.maximum(
        norm(conv(normalise(PIXELS), variables, "stem_conv"), variables, "stem_bn"), 0
    )
    for place, gate in enumerate(gates, start=1):
        block = part(variables, "stage1", f"block{place:02d}")
        y = np.maximum(norm(conv(x, block, "conv1"), block, "bn1"), 0)
        added = gate * norm(conv(y, block, "conv2"), block, "bn2")
        yield x, added, x + added
        x = np.maximum(x + added, 0)


def concatenated(variables, gates):
    x = conv(normalise(PIXELS), variables, "stem_conv")
    for place, gate in enumerate(gates, start=1):
        layer = part(variables, "stage1", f"layer{place:02d}")
        new = gate * conv(np.maximum(norm(x, layer, "bn1"), 0), layer, "conv1")
        yield x, new, np.concatenate([x, new], axis=-1)
        x = np.concatenate([x, new], axis=-1)


@pytest.mark.parametrize(
    "model, by_numpy",
    [
        (ResNet((2,), num_classes=3, features=(4,)), summed),
        (DenseNet((2,), num_classes=3, growth_rate=2, stem_features=4), concatenated),
    ],
    ids=["ResNet", "DenseNet"],
)
def test_parts_and_their_combination(random_variables, model, by_numpy):
    variables = random_variables(model, IMAGE)
    gates = np.array([1.0, 0.5], "float32")
    combine = combination.make_combination(model=model, preprocess=normalise)
    halves = [
        jax.device_get(combine(variables, gates, PIXELS[i : i + 2])) for i in (0, 2)
    ]
    found = combination.statistics(halves)
    assert list(found) == [block.name for block in model.blocks]
    expected = by_numpy(unstack(variables), gates)
    for of_block, (carried, added, combined) in zip(
        found.values(), expected, strict=True
    ):
        for kind, x in [("carried", carried), ("added", added), ("combined", combined)]:
            assert of_block[kind] == pytest.approx(x.std(), rel=1e-4)
        parts = [*np.moveaxis(carried, -1, 0), *np.moveaxis(added, -1, 0)]
        sizes = carried.shape[-1], added.shape[-1]
        mean = np.average([carried.var(), added.var()], weights=sizes)
        assert of_block["variance_ratio"] == pytest.approx(
            combined.var() / mean, rel=1e-3
        )
        assert of_block["concatenated_ratio"] == pytest.approx(
            np.var(parts) / mean, rel=1e-3
        )
        distances = [
            stats.ks_2samp(
                carried[i : i + 2].ravel(), added[i : i + 2].ravel()
            ).statistic
            for i in (0, 2)
        ]
        assert of_block["distance"] == pytest.approx(np.mean(distances), abs=0.01)
