# SPDX-License-Identifier: Apache-2.0
"""Weights of other frameworks."""

from rn_jax.interop.torch import from_torch, read_weights, torch_fields

__all__ = ["from_torch", "read_weights", "torch_fields"]
