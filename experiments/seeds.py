# SPDX-License-Identifier: Apache-2.0
"""Old names, for version 0.1 only: see `experiments.training.many_runs`."""

from experiments.training.many_runs import describe as describe
from experiments.training.many_runs import parse_seeds as parse
from experiments.training.many_runs import train_seeds as train

__all__ = ["describe", "parse", "train"]
