# SPDX-License-Identifier: Apache-2.0
"""Gradient that reaches each block through the shortcuts alone (He et al. 2016)."""

import math

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, Subject, no_paths
from experiments.studies.gradient_by_layer import BATCH, training_batch
from rn_jax.analysis import gradients
from rn_jax.models.densenet import DenseNet

# A product of shortcuts this close to 1 leaves the gradient as it is.
UNCHANGED = 1e-4


def missing(subject: Subject) -> str | None:
    """Return why there are no shortcuts around sums, or None."""
    if isinstance(subject.model, DenseNet):
        return "its blocks add nothing to a shortcut"
    return no_paths(subject)


def measure(lab: Lab) -> Result:
    """Measure the norm of the gradient by each block's input.

    "shortcuts" is the part that passes through no branch, "whole" is all of it.
    """
    gradient = gradients.make_block_gradients(
        model=lab.model, preprocess=lab.subject.preprocess
    )
    batch = training_batch(lab, "shortcut_gradient")

    def norms(paths):
        found = gradient(lab.subject.variables, lab.gates, batch, paths)
        return [float(norm) for norm in found.values()]

    return {
        "measured_on": f"{BATCH} training images",
        "block_names": [block.name for block in lab.blocks],
        "same_shape": [block.same_shape for block in lab.blocks],
        "shortcuts": norms(np.zeros(lab.num_blocks, np.float32)),
        "whole": norms(None),
    }


def by_stage(result: Result) -> dict[str, float]:
    """Return what the shortcuts of each stage leave of the gradient, by its name.

    It is the norm through shortcuts alone at the input of the stage's first block that
    keeps the shape, divided by that at the input of the block after the stage, or of
    the last block of the network. Only stages with a block between the two are
    included, and only if any gradient reaches them.
    """
    names, norms = result["block_names"], result["shortcuts"]
    stages: dict[str, list[int]] = {}
    for i, same_shape in enumerate(result["same_shape"][:-1]):
        if same_shape:
            stages.setdefault(names[i].partition("/")[0], []).append(i)
    return {
        stage: norms[blocks[0]] / norms[blocks[-1] + 1]
        for stage, blocks in stages.items()
        if norms[blocks[-1] + 1] > 0
    }


def by_block(result: Result) -> float:
    """Return the factor by which one shape-preserving shortcut scales the gradient.

    It is the median over blocks that any gradient reaches and leaves through shortcuts
    alone; 0 if there are none.
    """
    norms = result["shortcuts"]
    found = [
        before / after
        for before, after, same in zip(
            norms, norms[1:], result["same_shape"], strict=False
        )
        if same and before and after
    ]
    return float(np.median(found)) if found else 0.0


def kept(result: Result) -> float:
    """Return the share of the gradient that survives all shape-preserving shortcuts.

    It is 0 if no gradient reaches the first block.
    """
    return math.prod(by_stage(result).values()) if all(result["shortcuts"]) else 0.0


def draw(results: Results) -> figures.Figure:
    """Draw both norms by block, relative to the last block's; dotted: the whole."""
    figure, [axes] = figures.panels()
    for label, result, style in figures.styled(results):
        place = figures.along(len(result["shortcuts"]))
        for kind, line in (("shortcuts", "-"), ("whole", ":")):
            norms = np.array(result[kind])
            shown = np.where(norms > 0, norms, np.nan) / (norms[-1] or np.nan)
            look = {"color": style["color"], "linestyle": line}
            axes.plot(place, shown, **look, label=f"{label}, {kind}")
    relative = "gradient by the block's input / that of the last block"
    block = figures.along_label()
    figures.finish(axes, xlabel=block, ylabel=relative, yscale="log")
    return figure


def describe(result: Result) -> str:
    """Describe what the shortcuts leave of the gradient."""
    found = by_stage(result)
    if not found:
        return "No gradient passes along two blocks of one shape."
    stages = ", ".join(f"{ratio:.3g} in {stage}" for stage, ratio in found.items())
    total = kept(result)
    if all(abs(ratio - 1) <= UNCHANGED for ratio in found.values()):
        change = "leave the gradient as it is"
    else:
        change = f"leave {total:.2g} times the gradient"
    first, last = result["whole"][0], result["whole"][-1]
    whole = (
        f"{first / last:.3g} times" if last else "without any gradient to compare to"
    )
    return (
        f"Alone, the shortcuts around blocks that keep the shape {change}: they "
        f"multiply its norm by {stages}. With all branches, the gradient by the input "
        f"of the first block is {whole} that of the last. In the paper, identity "
        "shortcuts with no function after the sum leave the gradient unchanged; a ReLU "
        "after the sum or another shortcut multiplies it in every block."
    )


STUDY = Study(
    "Gradient through the shortcuts",
    "Norm of the loss's gradient by each block's input along the path without branches "
    "(solid) and along all paths (dotted), relative to that of the last block, with "
    "the statistics of the mini-batch (He et al. 2016, equations 5 to 8).",
    *(measure, draw, describe),
    order=16,
    missing=missing,
    uses=("seed",),
    columns={"gradient through shortcuts alone": lambda r: f"{kept(r):.2g}"},
)
