# SPDX-License-Identifier: Apache-2.0
"""Weights of other frameworks, and networks as programs without any framework."""

from rn_jax.interop.onnx import to_onnx
from rn_jax.interop.public import load_public, preprocessing
from rn_jax.interop.stablehlo import from_stablehlo, to_stablehlo
from rn_jax.interop.torch import from_torch, to_torch, torch_fields
from rn_jax.weight_files import read_weights

__all__ = [
    "from_stablehlo",
    "from_torch",
    "load_public",
    "preprocessing",
    "read_weights",
    "to_onnx",
    "to_stablehlo",
    "to_torch",
    "torch_fields",
]
