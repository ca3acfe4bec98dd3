# SPDX-License-Identifier: Apache-2.0
"""Residual networks in JAX and Flax Linen, the only packages that it imports."""

from rn_jax import startup as startup  # isort: skip  # before JAX
from rn_jax.errors import InputError
from rn_jax.models import ModelEntry, create_model, list_models, register_model
from rn_jax.models.channels import with_channels
from rn_jax.models.deepen import deepen
from rn_jax.models.features import FeatureInfo, feature_info, features
from rn_jax.models.trunk import BlockInfo, block_variables, stack, unstack
from rn_jax.stochastic_depth import (
    Shaken,
    StochasticDepth,
    Subset,
    eval_gates,
    expected_open_blocks,
    sample_gates,
    survival_probs,
)
from rn_jax.stochastic_depth import test_gates as test_gates  # the name until 0.1
from rn_jax.weights import list_weights, load, read_info, save

__version__ = "0.1.0"

__all__ = [
    "BlockInfo",
    "FeatureInfo",
    "InputError",
    "ModelEntry",
    "Shaken",
    "StochasticDepth",
    "Subset",
    "block_variables",
    "create_model",
    "deepen",
    "eval_gates",
    "expected_open_blocks",
    "feature_info",
    "features",
    "list_models",
    "list_weights",
    "load",
    "read_info",
    "register_model",
    "sample_gates",
    "save",
    "stack",
    "survival_probs",
    "unstack",
    "with_channels",
]
