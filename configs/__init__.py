# SPDX-License-Identifier: Apache-2.0
"""Experiments: one short file per row of a paper, over the fields of default.py."""
