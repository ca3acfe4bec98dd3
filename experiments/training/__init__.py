# SPDX-License-Identifier: Apache-2.0
"""One run from config to summary: set-up, batches, loop and files."""
