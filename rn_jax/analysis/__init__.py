# SPDX-License-Identifier: Apache-2.0
"""Looking at runs and trained networks."""
