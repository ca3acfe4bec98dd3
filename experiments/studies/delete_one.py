# SPDX-License-Identifier: Apache-2.0
"""Deleting each block in turn (Veit et al. 2016, figures 3 and 4)."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, no_gates
from experiments.studies.words import UNHARMED, chance, too_near_chance

# Points of test error that one deleted block must cost to be called needed.
NEEDED = 5.0


def measure(lab: Lab) -> Result:
    """Measure the error after deleting each block in turn."""
    same = {block.same_shape for block in lab.blocks}
    return {
        "measured_on": lab.test_images,
        "blocks": [
            {
                "name": block.name,
                "stage": block.stage,
                # Among blocks that keep the shape, one that does not: its shortcut
                # stays. In a DenseNet every layer adds channels, and none is one.
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
        place = np.arange(1, len(errors) + 1)
        line = np.array([np.nan if e is None else e for e in errors])
        axes.plot(place, line, **style, markersize=4, label=label)
        hollow = [bool(b["transition"] and b["deletable"]) for b in result["blocks"]]
        axes.plot(
            place[hollow],
            line[hollow],
            style["marker"],
            color=style["color"],
            markerfacecolor="white",
            markersize=9,
        )
        fixed = place[[not block["deletable"] for block in result["blocks"]]]
        base = result["baseline_error_percent"]
        axes.plot(fixed, np.full(len(fixed), base), "x", color=style["color"])
        axes.axhline(base, color=style["color"], linestyle=":", linewidth=0.8)
    axes.plot([], [], "ko", markerfacecolor="white", markersize=9, label="transition")
    if any(not b["deletable"] for r in results.values() for b in r["blocks"]):
        axes.plot([], [], "kx", linestyle="", label="changes the shape: not deletable")
    axes.plot([], [], "k:", linewidth=0.8, label="whole network")
    last = max(len(result["blocks"]) for result in results.values())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="deleted block $l$", xlim=(0.4, last + 0.6))
    figures.finish(axes, ylabel="test error (%)", ylim=(0, None))
    return figure


def tell(result: Result) -> str:
    """Say what a deleted block costs, and whether the paper saw the same."""
    inner, across = _damages(result)
    base = result["baseline_error_percent"]
    kind = "blocks that keep the shape of their input" if len(across) else "blocks"
    told = (
        f"The whole network has {base:.2f} % test error. Deleting one of {len(inner)} "
        f"{kind} costs {np.median(inner):.2f} points at the median and "
        f"{inner.max():.2f} at most; {(inner <= UNHARMED).sum()} of them cost "
        f"{UNHARMED:g} point or less."
    )
    if len(across):
        costs = ", ".join(f"{cost:.2f}" for cost in across)
        told += f" The transitions, whose shortcut stays, cost {costs} points."
    if fixed := sum(not block["deletable"] for block in result["blocks"]):
        told += f" {fixed} layers change the shape and cannot be deleted."
    if result["residual"]:
        return f"{told} {_agreement(result, inner, across)}"
    if result["has_shortcuts"]:
        return f"{told} The paper deletes nothing from such a network."
    halfway = (base + chance(result)) / 2
    broken = (inner + base > halfway).sum()
    return (
        f"{told} Chance is {chance(result):.0f} %: {broken} of {len(inner)} deletions "
        f"bring the error past {halfway:.0f} %, half of the way. The paper saw the "
        "error of VGG go to chance whichever layer was deleted."
    )


def _damages(result):
    """Damage in points of the blocks of one shape, and of the transitions."""
    base = result["baseline_error_percent"]
    marks = [b for b in result["blocks"] if b["error_percent"] is not None]
    inner = [b["error_percent"] - base for b in marks if not b["transition"]]
    across = [b["error_percent"] - base for b in marks if b["transition"]]
    return np.array(inner), np.array(across)


def _agreement(result, inner, across):
    """Whether single deletions harm as little as the paper saw."""
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
    paper = "The paper saw a visible change at the transitions alone"
    if harmed:
        return (
            f"{paper}; here {len(harmed)} other blocks cost more than {NEEDED:g} "
            f"points: {', '.join(harmed[:6])}{' and more' if len(harmed) > 6 else ''}."
        )
    if len(across) and across.max() > max(UNHARMED, inner.max()):
        return f"{paper}, which agrees with this."
    return f"{paper}; here the transitions cost no more than other blocks."


def _cell(statistic, result):
    return f"{statistic(_damages(result)[0]):.2f}"


STUDY = Study(
    "Deleting one block",
    "Test error after deleting each block in turn (Veit et al. 2016, 4.1).",
    *(measure, draw, tell),
    missing=no_gates,
    columns={
        "one block deleted: median damage": lambda r: _cell(np.median, r),
        "most": lambda r: _cell(np.max, r),
    },
)
