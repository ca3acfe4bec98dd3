# SPDX-License-Identifier: Apache-2.0
"""The papers' tables, and the page of all results."""
