# SPDX-License-Identifier: Apache-2.0
"""The depth dial: closing more and more blocks (not in the papers)."""

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, no_gates
from experiments.studies.words import UNHARMED
from rn_jax.analysis import lesion

# Depths at which the dial stops.
STOPS = 20


def measure(lab: Lab) -> Result:
    """Measure the error by the number of open blocks, for three ways to choose them.

    "survival": the least likely to survive are closed first, which at constant depth,
    as under the linear rule, is from the last block on; "damage": those that cost least
    when they are deleted alone; "random".
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
    """Draw the error by open blocks; random choices: median and middle half."""
    names = {
        "closed: the least likely to survive, or deepest, first": "survival",
        "closed: those of the least damage first": "damage",
        "closed: at random": "random",
    }
    count = len(results)
    figure, panels = figures.panels(count, max(8, 5.0 * count), 5, sharey=True)
    for axes, (label, result) in zip(panels, results.items(), strict=True):
        for says, name, style in figures.styled(names):
            errors = result["error_percent"][name]
            medians = [np.median(e) for e in errors]
            axes.plot(result["open"], medians, **style, markersize=4, label=says)
            if name == "random":
                quartiles = np.array([np.quantile(e, (0.25, 0.75)) for e in errors])
                axes.fill_between(
                    result["open"],
                    *quartiles.T,
                    color=style["color"],
                    alpha=0.2,
                    linewidth=0,
                )
        base = result["baseline_error_percent"]
        axes.axhline(base, color="k", linestyle=":", linewidth=0.8)
        axes.set(title=label, xlabel="open blocks", ylim=(0, None))
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test error (%)")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", fontsize="small", ncols=2)
    return figure


def _unharmed_depth(result, name):
    """The most blocks that can be closed with at most `UNHARMED` points of damage."""
    limit = result["baseline_error_percent"] + UNHARMED
    count = 0
    for closed, errors in zip(
        result["closed"], result["error_percent"][name], strict=True
    ):
        if np.median(errors) > limit:
            break
        count = closed
    return count


def tell(result: Result) -> str:
    """Say how many blocks can be closed without harm."""
    counts = {n: _unharmed_depth(result, n) for n in result["error_percent"]}
    return (
        f"Of {result['closed'][-1]} blocks, {counts['damage']} can be closed at a cost "
        f"of {UNHARMED:g} point or less if those with the least damage go first, "
        f"{counts['survival']} if the least likely to survive, or the deepest, do, and "
        f"{counts['random']} at random (in steps of the figure)."
    )


STUDY = Study(
    "The depth dial",
    "Test error by the number of open blocks, for three ways to choose those "
    "to close (not in the papers).",
    *(measure, draw, tell),
    missing=no_gates,
    uses=("draws", "seed"),
    columns={
        f"closed for {UNHARMED:g} point": lambda r: f"{_unharmed_depth(r, 'damage')}"
    },
)
