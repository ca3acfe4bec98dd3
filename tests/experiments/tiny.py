# SPDX-License-Identifier: Apache-2.0
"""A network of four blocks, registered under the name that tests train."""

from rn_jax import ModelEntry, list_models, register_model
from rn_jax.models.resnet import ResNet

if "tiny" not in list_models():
    register_model(
        "tiny", ModelEntry(ResNet, {"stage_sizes": (2, 2), "features": (8, 16)})
    )
