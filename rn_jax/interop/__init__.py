# SPDX-License-Identifier: Apache-2.0
"""Weights of other frameworks, and networks as programs that need no framework."""

from rn_jax.interop.stablehlo import from_stablehlo, to_stablehlo
from rn_jax.interop.torch import from_torch, read_weights, to_torch, torch_fields

__all__ = [
    "from_stablehlo",
    "from_torch",
    "read_weights",
    "to_stablehlo",
    "to_torch",
    "torch_fields",
]
