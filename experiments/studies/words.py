# SPDX-License-Identifier: Apache-2.0
"""Terms and sentences shared by the texts of several studies."""

from experiments.studies import Result

# Points of test error within which a network counts as unharmed.
UNHARMED = 1.0


def chance(result: Result) -> float:
    """Return the test error of random guessing, in percent."""
    return 100 * (1 - 1 / result["num_classes"])


def activated_sum(result: Result) -> str:
    """Return how a residual network differs from those of Veit et al., or "".

    Theirs are pre-activation networks. Older results do not record the kind of block.
    """
    if not result["residual"] or result.get("preactivation", True):
        return ""
    return " (The paper's networks are pre-activation; here a ReLU follows each sum.)"


def too_near_chance(result: Result) -> str:
    """Return why a network cannot be compared with the paper's, or ""."""
    if result["baseline_error_percent"] <= chance(result) / 2:
        return ""
    return (
        f"A network whose test error exceeds half of chance ({chance(result):.0f} %) "
        "is too inaccurate to be compared with the paper's."
    )
