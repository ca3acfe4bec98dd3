# SPDX-License-Identifier: Apache-2.0
"""Networks by the names of their papers, and the modules they are made of."""

from rn_jax.models.table import (
    MODELS,
    ModelEntry,
    create_model,
    list_models,
    register_model,
)

__all__ = ["MODELS", "ModelEntry", "create_model", "list_models", "register_model"]
