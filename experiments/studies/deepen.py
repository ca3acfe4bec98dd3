# SPDX-License-Identifier: Apache-2.0
"""Deeper networks built from the trained one (He et al. 2015, section 1)."""

import dataclasses
from typing import Any

import jax
import numpy as np

import rn_jax
from experiments import figures
from experiments.studies import Lab, Result, Results, Study, Subject
from rn_jax.models.deepen import cannot_deepen

# The marker of the network as it was trained.
_TRAINED: dict[str, Any] = {
    "marker": "o",
    "linestyle": "",
    "markerfacecolor": "none",
    "markeredgecolor": "black",
    "markersize": 8,
}


def missing(subject: Subject) -> str | None:
    """Return why no deeper network has the same function, or None."""
    why = cannot_deepen(subject.model)
    return why and why.removesuffix(".")


def measure(lab: Lab) -> Result:
    """Measure the test error of networks with more blocks: one per stage, and twice.

    `rn_jax.deepen` builds them: added blocks are the identity, and with stochastic
    depth the old blocks keep their survival probabilities.
    """
    before = lab.probabilities(lab.gates)
    sizes = lab.model.stage_sizes
    deeper = [
        _deepened(lab, before, new)
        for new in ([n + 1 for n in sizes], [2 * n for n in sizes])
    ]
    return {
        "measured_on": lab.test_images,
        "stage_sizes": list(sizes),
        "parameters": _parameters(lab.subject.variables),
        "deeper": deeper,
    }


def _deepened(lab, before, stage_sizes):
    model, variables = rn_jax.deepen(
        lab.model, lab.subject.variables, stage_sizes, key=jax.random.key(lab.seed)
    )
    variables = jax.device_get(variables)
    subject = dataclasses.replace(lab.subject, model=model, variables=variables)
    other = Lab(subject, images=lab.images, factors=lab.factors)
    after = other.probabilities(other.gates)
    wrong = after.argmax(axis=-1) != other.labels
    return {
        "stage_sizes": stage_sizes,
        "num_blocks": model.num_blocks,
        "parameters": _parameters(variables),
        "error_percent": 100 * int(wrong.sum()) / len(wrong),
        "largest_change_of_probability": float(np.abs(after - before).max()),
    }


def _parameters(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def draw(results: Results) -> figures.Figure:
    """Draw the test error by the number of blocks."""
    figure, [axes] = figures.panels()
    for label, result, style in figures.styled(results):
        blocks = [result["num_blocks"], *(d["num_blocks"] for d in result["deeper"])]
        errors = [d["error_percent"] for d in result["deeper"]]
        axes.plot(
            blocks, [result["baseline_error_percent"], *errors], **style, label=label
        )
        axes.plot(blocks[0], result["baseline_error_percent"], **_TRAINED)
    axes.plot([], [], **_TRAINED, label="as trained")
    figures.finish(axes, xlabel="blocks $L$", ylabel="test error (%)", ylim=(0, None))
    return figure


def describe(result: Result) -> str:
    """Describe the errors before and after, and how to train on from there."""
    base = result["baseline_error_percent"]
    shown = " and ".join(
        f"{d['error_percent']:.2f} % with {d['num_blocks']} blocks "
        f"({d['parameters']:,} parameters)"
        for d in result["deeper"]
    )
    change = max(d["largest_change_of_probability"] for d in result["deeper"])
    same = all(d["error_percent"] == base for d in result["deeper"])
    return (
        f"With its {result['num_blocks']} blocks ({result['parameters']:,} parameters) "
        f"the network has {base:.2f} % test error, and {shown}: "
        f"{'the same' if same else 'not the same'}. No predicted probability changes "
        f"by more than {change:.1g}, by rounding. So there are deeper networks that "
        "are no worse: if training a deeper network from its usual initialisation ends "
        "worse, optimisation did not find them (He et al. 2015). A run with init_from "
        "and init_deepen=True begins with such a network."
    )


STUDY = Study(
    "Identity by construction",
    "Test error of deeper networks whose added blocks are the identity (He et al. "
    "2015, section 1).",
    *(measure, draw, describe),
    order=13,
    missing=missing,
    uses=("seed",),
)
