# SPDX-License-Identifier: Apache-2.0
"""Whether training drives residual branches towards zero (He et al. 2015, 3.2)."""

import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study
from experiments.studies.layer_responses import BATCH, IMAGES
from rn_jax.analysis import branches, combination
from rn_jax.models.resnet import ResNet


def measure(lab: Lab) -> Result:
    """Measure the weights of each branch, and its response relative to the shortcut.

    "kernel" and "scale" are the norms of a branch's kernels and of its BatchNorm
    scales, divided by those of initial parameters that are drawn from the lab's seed;
    None where those are 0. "response" is ||F(x)|| / ||h(x)||, over the first test
    images, before the activation; None if a block has no such sum.
    """
    start, end = (
        branches.weight_norms(variables["params"], lab.model)
        for variables in (lab.initial_variables(), lab.subject.variables)
    )
    batches, measured_on = lab.first_batches(IMAGES, BATCH)
    return {
        "measured_on": measured_on,
        "block_names": [block.name for block in lab.blocks],
        **{
            kind: [
                float(norm / before) if before else None
                for norm, before in zip(end[kind], start[kind], strict=True)
            ]
            for kind in branches.KINDS
        },
        "response": _responses(lab, batches),
    }


def _responses(lab, batches):
    if not (isinstance(lab.model, ResNet) and lab.model.has_shortcuts):
        return [None] * lab.num_blocks
    combine = combination.make_combination(
        model=lab.model, preprocess=lab.subject.preprocess
    )
    squares = np.zeros((2, lab.num_blocks))
    for images in lab.each(batches, "branch_weights"):
        found = combine(lab.subject.variables, lab.gates, images)
        for row, kind in zip(squares, ("added", "carried"), strict=True):
            row += [float(block[kind][1]) for block in found.values()]
    return [float(np.sqrt(f / h)) if h else None for f, h in squares.T]


def median(result: Result, kind: str) -> float | None:
    """Return the median over blocks of "kernel", "scale" or "response", or None."""
    known = [value for value in result[kind] if value is not None]
    return float(np.median(known)) if known else None


def weights(result: Result) -> float:
    """Return the median of what determines the size of a branch.

    These are the scales of BatchNorm, which undoes the norm of the kernel before it, or
    the kernels if there is no BatchNorm.
    """
    scale = median(result, "scale")
    kernel = median(result, "kernel")
    assert kernel is not None, "no initialiser begins all kernels at 0"
    return kernel if scale is None else scale


def draw(results: Results) -> figures.Figure:
    """Draw the weights relative to the start (dotted: scales), and the responses."""
    figure, (left, right) = figures.panels(2, aspect=0.8)
    for label, result, style in figures.styled(results):
        place = figures.along(len(result["block_names"]))
        for kind, line in (("kernel", "-"), ("scale", ":")):
            look = {"color": style["color"], "linestyle": line}
            values = np.array(result[kind], float)
            left.plot(place, values, **look, label=f"{label}, {kind}s")
        response = np.array(result["response"], float)
        right.plot(place, response, **style, label=label)
    left.axhline(1, **figures.REFERENCE, color="black", label="initial norm")
    axis = {"xlabel": figures.along_label(), "ylim": (0, None)}
    figures.finish(left, ylabel="norm of the weights / that at the start", **axis)
    figures.finish(right, ylabel="$||F(x)|| / ||h(x)||$", **axis)
    return figure


def describe(result: Result) -> str:
    """Describe the medians over blocks, and what they say of the paper's remark."""
    found = {kind: median(result, kind) for kind in branches.KINDS}
    shown = [
        f"the {kind}s have {value:.2f} times their initial norm"
        for kind, value in found.items()
        if value is not None
    ]
    parts = " and ".join(shown) or "all weights began at 0"
    text = f"In the median block {parts}. "
    response = median(result, "response")
    if response is not None:
        text += (
            f"A branch responds with {response:.2f} times the norm of its shortcut. "
        )
    return text + (
        "He et al. 2015 expect solvers to drive the weights of residual branches "
        "towards zero where identities are optimal, and find small responses. The norm "
        "of a kernel before BatchNorm has no effect; the scale after it has."
    )


def _cell(value):
    return "" if value is None else f"{value:.2f}"


STUDY = Study(
    "Weights of the residual branches",
    "Norm of the kernels and BatchNorm scales of each block's branch, relative to "
    "initial parameters, and of its response, relative to the shortcut; for a plain "
    "network, the weights of its layers (He et al. 2015, section 3.2 and figure 7).",
    *(measure, draw, describe),
    order=17,
    missing=lambda s: None if s.model.num_blocks else "it has no blocks",
    uses=("seed",),
    columns={
        "kernels, relative to the start": lambda r: _cell(median(r, "kernel")),
        "response / shortcut": lambda r: _cell(median(r, "response")),
    },
)
