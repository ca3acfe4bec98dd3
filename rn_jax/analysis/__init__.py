# SPDX-License-Identifier: Apache-2.0
"""Analysis of trained networks: lesions, paths, responses, cost, highway gates."""
