# SPDX-License-Identifier: Apache-2.0
"""Measurements: both sides in one run, ratios of medians, the command beside them."""
