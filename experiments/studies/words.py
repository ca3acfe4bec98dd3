# SPDX-License-Identifier: Apache-2.0
"""What the paragraphs of several studies share."""

from experiments.studies import Result

# Points of test error within which a network counts as unharmed.
UNHARMED = 1.0


def chance(result: Result) -> float:
    """Return the test error of guessing, in percent."""
    return 100 * (1 - 1 / result["num_classes"])


def too_near_chance(result: Result) -> str:
    """Say why a network is not to be compared with the paper's, or nothing."""
    if result["baseline_error_percent"] <= chance(result) / 2:
        return ""
    return (
        "A network with more than half the test error of guessing, "
        f"{chance(result):.0f} %, has too little to lose to be compared with the "
        "paper's."
    )
