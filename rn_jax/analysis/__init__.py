# SPDX-License-Identifier: Apache-2.0
"""Analysis of networks: lesions, paths, responses, gradients, cost, highway gates."""
