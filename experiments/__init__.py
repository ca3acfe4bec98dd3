# SPDX-License-Identifier: Apache-2.0
"""The commands: training by a config."""
