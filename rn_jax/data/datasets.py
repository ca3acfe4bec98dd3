# SPDX-License-Identifier: Apache-2.0
"""The old name of `rn_jax.data`, kept for one version."""

from rn_jax.data import *  # noqa: F403
