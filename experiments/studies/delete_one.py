# SPDX-License-Identifier: Apache-2.0
"""Deleting each block in turn (Veit et al. 2016, figures 3 and 4)."""

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, no_gates
from experiments.studies.words import UNHARMED, activated_sum, chance, too_near_chance

# Points of test error that one deleted block must cost to be called needed.
NEEDED = 5.0


def measure(lab: Lab) -> Result:
    """Measure the test error in percent after deleting each block in turn."""
    same = {block.same_shape for block in lab.blocks}
    return {
        "measured_on": lab.test_images,
        "blocks": [
            {
                "name": block.name,
                "stage": block.stage,
                # A block that changes the shape among others that keep it; deleting
                # it leaves its shortcut. In a DenseNet every layer changes the shape,
                # and none is a transition.
                "transition": len(same) == 2 and not block.same_shape,
                "deletable": block.skippable,
                "error_percent": error,
            }
            for block, error in zip(lab.blocks, lab.deletions, strict=True)
        ],
    }


def draw(results: Results) -> figures.Figure:
    """Draw the error by deleted block; hollow: transitions; crosses: not deletable."""
    figure, [axes] = figures.panels()
    for label, result, style in figures.styled(results):
        errors = [block["error_percent"] for block in result["blocks"]]
        place = figures.along(len(errors))
        line = np.array([np.nan if e is None else e for e in errors])  # (num_blocks,)
        axes.plot(place, line, **style, label=label)
        hollow = [bool(b["transition"] and b["deletable"]) for b in result["blocks"]]
        if any(hollow):
            look = {**style, **figures.HOLLOW, "linestyle": ""}
            look["label"] = f"{label}: transition"
            axes.plot(place[hollow], line[hollow], **look)
        fixed = place[[not block["deletable"] for block in result["blocks"]]]
        base = result["baseline_error_percent"]
        axes.plot(fixed, np.full(len(fixed), base), "x", color=style["color"])
        axes.axhline(base, color=style["color"], **figures.REFERENCE)
    if any(not b["deletable"] for r in results.values() for b in r["blocks"]):
        axes.plot([], [], "kx", linestyle="", label="changes the shape: not deletable")
    axes.plot([], [], color="black", **figures.REFERENCE, label="whole network")
    axis = {"xlabel": figures.along_label("deleted block"), "ylim": (0, None)}
    figures.finish(axes, ylabel="test error (%)", **axis)
    return figure


def describe(result: Result) -> str:
    """Describe the damage of a deletion, and compare it with the paper."""
    inner, across = damages(result)
    base = result["baseline_error_percent"]
    kind = "blocks that keep the shape of their input" if len(across) else "blocks"
    text = (
        f"The whole network has {base:.2f} % test error. Deleting one of {len(inner)} "
        f"{kind} costs {np.median(inner):.2f} points in the median and "
        f"{inner.max():.2f} at most; {(inner <= UNHARMED).sum()} of these deletions "
        f"cost {UNHARMED:g} point or less."
    )
    if result["has_shortcuts"]:
        text += " Each deletion leaves half of all paths."
    if len(across):
        costs = ", ".join(f"{cost:.2f}" for cost in across)
        text += f" Deleting transitions, whose shortcut remains, costs {costs} points."
    if fixed := sum(not block["deletable"] for block in result["blocks"]):
        text += f" Layers that change the shape cannot be deleted: {fixed}."
    if result["residual"]:
        agreement = _agreement(result, inner, across)
        return f"{text} {agreement}{activated_sum(result)}"
    if result["has_shortcuts"]:
        return f"{text} The paper does not study such networks."
    halfway = (base + chance(result)) / 2
    broken = (inner + base > halfway).sum()
    return (
        f"{text} Chance is {chance(result):.0f} %: {broken} of {len(inner)} deletions "
        f"raise the error above {halfway:.0f} %, halfway to chance. In the paper the "
        "error of VGG rises to chance whichever layer is deleted."
    )


def damages(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Return the damage in points of blocks that keep the shape, and of transitions."""
    base = result["baseline_error_percent"]
    marks = [b for b in result["blocks"] if b["error_percent"] is not None]
    inner = [b["error_percent"] - base for b in marks if not b["transition"]]
    across = [b["error_percent"] - base for b in marks if b["transition"]]
    return np.array(inner), np.array(across)


def _agreement(result, inner, across):
    """Say whether single deletions cost as little as in the paper."""
    if near := too_near_chance(result):
        return near
    base = result["baseline_error_percent"]
    harmed = [
        block["name"]
        for block in result["blocks"]
        if block["deletable"]
        and not block["transition"]
        and block["error_percent"] - base > NEEDED
    ]
    paper = "In the paper only transitions have a visible effect"
    if harmed:
        also = "also " if len(across) and across.max() > UNHARMED else ""
        return (
            f"{paper}; here these blocks {also}cost more than {NEEDED:g} points: "
            f"{', '.join(harmed[:6])}{' and others' if len(harmed) > 6 else ''}."
        )
    if len(across) and across.max() > max(UNHARMED, inner.max()):
        return f"{paper}, as here."
    return f"{paper}; here transitions cost no more than other blocks."


def _cell(statistic, result):
    return f"{statistic(damages(result)[0]):.2f}"


STUDY = Study(
    "Deleting one block",
    "Test error after deleting each block in turn (Veit et al. 2016, 4.1).",
    *(measure, draw, describe),
    order=1,
    missing=no_gates,
    columns={
        "one block deleted: median damage": lambda r: _cell(np.median, r),
        "most": lambda r: _cell(np.max, r),
    },
)
