# SPDX-License-Identifier: Apache-2.0
"""The old name of `cli`, for one version: scripts import `of_script` from it."""

from experiments.cli import of_script as of_script
