# SPDX-License-Identifier: Apache-2.0
"""Standard deviations of the layers' outputs, against values captured by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rn_jax.analysis import responses
from rn_jax.models.densenet import DenseNet
from rn_jax.models.preact import FullPreactivation
from rn_jax.models.resnet import PlainLayer, ResNet

IMAGE = (8, 8, 3)


def normalise(pixels):
    return pixels.astype(jnp.float32) / 64 - 2


@pytest.mark.parametrize(
    "model, captured",
    [
        (
            ResNet((2, 1), num_classes=3, features=(4, 8), shortcut="B"),
            """stage1/blocks/bn1/0 stage1/blocks/bn2/0 stage1/blocks/bn1/1
            stage1/blocks/bn2/1 stage2/first/bn1 stage2/first/bn2""",
        ),
        (
            ResNet((2,), num_classes=3, features=(4,), block=FullPreactivation),
            """stage1/first/conv1 stage1/first/conv2 stage1/blocks/conv1/0
            stage1/blocks/conv2/0""",
        ),
        (
            ResNet((1, 1), num_classes=3, features=(4, 8), block=PlainLayer),
            "stage1/blocks/bn/0 stage2/first/bn",
        ),
        (
            DenseNet((2,), num_classes=3, growth_rate=4, bottleneck=True),
            """stage1/layer01/conv1 stage1/layer01/conv2 stage1/layer02/conv1
            stage1/layer02/conv2""",
        ),
    ],
    ids=["ResNet", "pre-activation", "plain", "DenseNet"],
)
def test_standard_deviations(random_variables, model, captured):
    variables = random_variables(model, IMAGE)
    pixels = np.random.default_rng(0).integers(0, 256, (6, *IMAGE), dtype=np.uint8)
    moments = responses.make_response_moments(model=model, preprocess=normalise)
    gates = np.ones(model.num_blocks, np.float32)
    found = responses.standard_deviations(
        [moments(variables, gates, pixels[:3]), moments(variables, gates, pixels[3:])]
    )
    _, features = jax.jit(
        lambda v, x: model.apply(
            v, x, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
    )(variables, normalise(pixels))
    expected = []
    for path in captured.split():
        value = features["intermediates"]
        *names, last = path.split("/")
        names, index = (names, int(last)) if last.isdigit() else ([*names, last], None)
        for name in names:
            value = value[name]
        value = value["__call__"][0]
        expected.append(np.std(value if index is None else value[index]))
    assert len(found) == len(expected)
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-4)
    names = [name.rpartition("/")[0] for name in found]
    assert sorted(set(names)) == [block.name for block in model.blocks]
