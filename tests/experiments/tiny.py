# SPDX-License-Identifier: Apache-2.0
"""A network of four blocks, under the name that tests train."""

from rn_jax import ModelEntry
from rn_jax.models.resnet import ResNet

TINY = ModelEntry(ResNet, {"stage_sizes": (2, 2), "features": (8, 16)})
