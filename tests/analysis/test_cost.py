# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds against torchvision's metadata and arithmetic."""

import pytest

from rn_jax import create_model
from rn_jax.analysis.cost import multiply_adds

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
    ("resnet101", {}, 7.801),
    ("resnet101", {"block_kwargs": {"stride_on": "1x1"}}, 7.570),
    ("resnet152", {}, 11.514),
    ("resnet152", {"block_kwargs": {"stride_on": "1x1"}}, 11.282),
    ("resnet200", {}, 15.007),
    ("resnet200", {"block_kwargs": {"stride_on": "1x1"}}, 14.776),
    ("wide_resnet50_2", {}, 11.398),
    ("wide_resnet101_2", {}, 22.753),
    ("resnext50_32x4d", {}, 4.230),
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
