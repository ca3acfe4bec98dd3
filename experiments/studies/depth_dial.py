# SPDX-License-Identifier: Apache-2.0
"""The depth dial: closing more and more blocks (not in the papers)."""

import itertools

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, no_gates
from experiments.studies.words import UNHARMED
from rn_jax.analysis import lesion

# Number of steps from all blocks open to none.
STOPS = 20


def measure(lab: Lab) -> Result:
    """Measure the test error in percent by the number of open blocks, for three orders.

    "survival" closes the blocks with the lowest survival probability first, which at
    constant depth, as under the linear rule, is from the last block on; "damage" closes
    those first whose single deletion costs least; "random" draws orders.
    """
    ranking = lab.survival
    if ranking is None:
        ranking = -np.arange(lab.num_blocks, dtype=float)
    orders: dict[str, list] = {
        "survival": [lesion.closing_order(ranking, lab.blocks)],
        "damage": [lesion.closing_order(lab.damage, lab.blocks)],
    }
    rng, (closing,) = lab.rng("depth_dial"), orders["survival"]
    orders["random"] = [rng.permutation(closing) for _ in range(lab.draws)]
    stops = np.linspace(0, len(closing), min(STOPS, len(closing)) + 1)
    closed = sorted({int(stop) for stop in stops})
    return {
        "measured_on": lab.test_images,
        "closed": closed,
        "open": [lab.num_blocks - k for k in closed],
        "error_percent": {
            name: [
                [lab.error(lesion.without(lab.gates, order[:k])) for order in choices]
                for k in lab.each(closed, f"depth_dial {name}")
            ]
            for name, choices in orders.items()
        },
    }


def draw(results: Results) -> figures.Figure:
    """Draw the error by open blocks; for random orders, median and quartiles."""
    names = {
        "lowest survival probability, or deepest, closed first": "survival",
        "least damage closed first": "damage",
        "closed in random order": "random",
    }
    figure, panels = figures.panels(len(results), sharey=True)
    for axes, (label, result) in zip(panels, results.items(), strict=True):
        for description, name, style in figures.styled(names):
            errors = result["error_percent"][name]
            medians = [np.median(e) for e in errors]
            axes.plot(result["open"], medians, **style, label=description)
            if name == "random":
                quartiles = np.array([np.quantile(e, (0.25, 0.75)) for e in errors])
                shade = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
                shade["label"] = "quartiles of random orders"
                axes.fill_between(result["open"], *quartiles.T, **shade)
        base = result["baseline_error_percent"]
        whole = {**figures.REFERENCE, "label": "whole network"}
        axes.axhline(base, color="black", **whole)
        axis = {"xlabel": "open blocks", "ylabel": "test error (%)", "ylim": (0, None)}
        figures.finish(axes, title=label, **axis)
        axes.invert_xaxis()
    return figure


def _unharmed_depth(result, name):
    """Return the largest number of blocks that can be closed at `UNHARMED` points."""
    limit = result["baseline_error_percent"] + UNHARMED
    stops = zip(result["closed"], result["error_percent"][name], strict=True)
    unharmed = itertools.takewhile(lambda stop: np.median(stop[1]) <= limit, stops)
    return max((closed for closed, _ in unharmed), default=0)


def describe(result: Result) -> str:
    """Describe how many blocks can be closed almost without damage."""
    counts = {n: _unharmed_depth(result, n) for n in result["error_percent"]}
    return (
        f"Of {result['closed'][-1]} blocks, {counts['damage']} can be closed at a cost "
        f"of {UNHARMED:g} point or less in order of least damage, {counts['survival']} "
        "in order of survival probability, or from the deepest on, and "
        f"{counts['random']} in random order (at the resolution of the figure)."
    )


STUDY = Study(
    "The depth dial",
    "Test error by the number of open blocks, for three orders of closing them (not in "
    "the papers).",
    *(measure, draw, describe),
    order=9,
    missing=no_gates,
    uses=("draws", "seed"),
    columns={
        f"closed for {UNHARMED:g} point": lambda r: f"{_unharmed_depth(r, 'damage')}"
    },
)
