# SPDX-License-Identifier: Apache-2.0
"""Old names, for version 0.1 only: see `studies.subject` and `training.trained`."""

from experiments.studies.subject import *  # noqa: F403
from experiments.training.trained import *  # noqa: F403
