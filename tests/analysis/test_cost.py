# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds against torchvision's metadata and arithmetic."""

import jax
import pytest

from rn_jax import create_model
from rn_jax.analysis.cost import multiply_adds, multiply_adds_by_module
from rn_jax.models.resnet import Bottleneck, ResNet

# Multiply-adds of one 224x224 image in 1e9.
MULTIPLY_ADDS = [
    ("resnet18", {}, 1.814),
    ("resnet18", {"shortcut": "A"}, 1.795),
    ("plain18", {}, 1.795),
    ("resnet34", {}, 3.664),
    ("resnet34", {"shortcut": "A"}, 3.644),
    ("plain34", {}, 3.644),
    ("resnet50", {}, 4.089),
    ("resnet50", {"block_kwargs": {"stride_on": "1x1"}}, 3.858),
    ("resnet50", {"shortcut": "C"}, 6.555),
    ("resnet101", {}, 7.801),
    ("resnet101", {"block_kwargs": {"stride_on": "1x1"}}, 7.570),
    ("resnet152", {}, 11.514),
    ("resnet152", {"block_kwargs": {"stride_on": "1x1"}}, 11.282),
    ("resnet200", {}, 15.007),
    ("resnet200", {"block_kwargs": {"stride_on": "1x1"}}, 14.776),
    ("wide_resnet50_2", {}, 11.398),
    ("wide_resnet101_2", {}, 22.753),
    ("resnext50_32x4d", {}, 4.230),
    ("resnext101_1x100d", {}, 15.273),
    ("resnext101_32x8d", {}, 16.414),
    ("resnext101_64x4d", {}, 15.460),
    ("densenet121", {}, 2.834),
    ("densenet161", {}, 7.728),
    ("densenet169", {}, 3.360),
    ("densenet201", {}, 4.291),
    ("vgg11", {}, 7.609),
    ("vgg13_bn", {}, 11.308),
    ("vgg16", {}, 15.470),
    ("vgg19_bn", {}, 19.632),
    ("googlenet", {}, 1.498),
    ("alexnet", {}, 0.714),
]

# Tracing layer by layer takes seconds: in `make test-all`, as is every other row.
SLOW = ("densenet161", "densenet169", "densenet201")


@pytest.mark.parametrize(
    "name, fields, expected",
    [
        pytest.param(*row, marks=[pytest.mark.slow] * (row[0] in SLOW or i % 2 > 0))
        for i, row in enumerate(MULTIPLY_ADDS)
    ],
)
def test_multiply_adds(name, fields, expected):
    found = multiply_adds(create_model(name, **fields), 224)
    assert round(found / 1e9, 3) == expected


@pytest.mark.parametrize("shortcut, weights", [("B", 69_632), ("C", 69_632 + 256**2)])
def test_a_projection_almost_doubles_a_bottleneck(shortcut, weights):
    """He et al. 2015, section 4.1: 256 to 64, 64 to 64 and 64 to 256, or 1.94 times."""
    fields = {"features": (256,), "stem_features": 64, "shortcut": shortcut}
    model = ResNet((2,), block=Bottleneck, **fields)
    work = multiply_adds_by_module(model, (8, 8, 3))
    second = sum(count for path, count in work.items() if "blocks" in path)
    assert second == 8 * 8 * weights
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    shapes = jax.eval_shape(
        lambda image: model.init(jax.random.key(0), image, train=False), image
    )
    block = jax.tree.leaves(shapes["params"]["stage1"]["blocks"])
    assert sum(leaf.size for leaf in block if leaf.ndim == 5) == weights
