# SPDX-License-Identifier: Apache-2.0
"""Networks drawn as in training, as an ensemble.

They are those of stochastic depth (Huang et al. 2016, section 3), or those of Swapout,
whose stochastic inference averages 30 of them (Singh et al. 2016).
"""

import jax
import numpy as np

from experiments import figures
from experiments.studies import Lab, Result, Results, Study, Subject
from rn_jax import eval_gates
from rn_jax.analysis import ensemble
from rn_jax.models.network import Network
from rn_jax.models.swapout import Swapout

# Number of networks drawn, a power of two, and the sizes of ensembles made of them.
NETWORKS = 32
SIZES = tuple(2**i for i in range(NETWORKS.bit_length()))


def _is_swapout(model: Network) -> bool:
    return issubclass(getattr(model, "block_class", object), Swapout)


def missing(subject: Subject) -> str | None:
    """Return why no networks were drawn in training, or None."""
    if subject.stochastic_depth is None:
        if _is_swapout(subject.model):
            return None
        return "it was trained at constant depth, as a single network"
    if subject.stochastic_depth.shake:
        return "ShakeDrop draws factors of branches, not networks"
    return None


def measure(lab: Lab) -> Result:
    """Measure the test error in percent of ensembles of k drawn networks.

    `NETWORKS` networks are drawn from the seed as for mini-batches of training, with
    BatchNorm's moving averages. For each k they are split into disjoint ensembles,
    which average their predicted probabilities. A Swapout network also draws the
    masks of all units, for every batch.
    """
    settings = lab.model.stochastic_depth
    rule, opened = np.ones(lab.num_blocks, np.float32), None
    gates = np.ones((NETWORKS, lab.num_blocks), np.float32)
    if settings is not None:
        rule = np.asarray(eval_gates(settings, lab.num_blocks))
        gates = ensemble.draw_networks(lab.seed, settings, lab.num_blocks, NETWORKS)
        opened = float((gates != 0).sum(axis=1).mean())
    key = jax.random.key(lab.seed) if _is_swapout(lab.model) else None
    predictions = [
        lab.probabilities(gates[n], None if key is None else jax.random.fold_in(key, n))
        for n in lab.each(range(NETWORKS), "gate_ensemble")
    ]
    found, labels = np.stack(predictions), lab.labels
    return {
        "measured_on": lab.test_images,
        "sizes": list(SIZES),
        "error_percent": [ensemble.group_errors(found, labels, k) for k in SIZES],
        "test_rule_error_percent": lab.error(rule),
        "open_blocks_mean": opened,
    }


def draw(results: Results) -> figures.Figure:
    """Draw the error by the size of the ensemble, with a line for the test rule."""
    figure, [axes] = figures.panels()
    for label, result, style in figures.styled(results):
        means = [np.mean(errors) for errors in result["error_percent"]]
        axes.plot(result["sizes"], means, **style, label=f"{label}: mean of ensembles")
        for size, errors in zip(result["sizes"], result["error_percent"], strict=True):
            dots = {"color": style["color"], "alpha": 0.4}
            axes.plot([size] * len(errors), errors, ".", **dots)
        rule = result["test_rule_error_percent"]
        axes.axhline(rule, color=style["color"], **figures.REFERENCE)
    axes.plot([], [], "k.", alpha=0.4, label="one ensemble")
    rule = "test rule: one network, scaled"
    axes.plot([], [], color="black", **figures.REFERENCE, label=rule)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    figures.finish(
        axes, xlabel="drawn networks $k$", ylabel="test error (%)", ylim=(0, None)
    )
    return figure


def describe(result: Result) -> str:
    """Compare single networks, their ensembles and the test rule."""
    single = result["error_percent"][0]
    size, whole = result["sizes"][-1], np.mean(result["error_percent"][-1])
    rule = result["test_rule_error_percent"]
    image = 100 / result["images"]
    if abs(whole - rule) <= image:
        verdict = "as accurate as the average, to within one test image"
    elif rule < whole:
        verdict = "more accurate than the average"
    else:
        verdict = "less accurate than the average"
    gain = "lowers" if whole < np.mean(single) else "does not lower"
    opened = result["open_blocks_mean"]
    if opened is None:
        drawn, scaled = "", "every mask replaced by its mean"
        paper = "Singh et al. 2016 average 30 networks."
    else:
        drawn = f", with {opened:.1f} of {result['num_blocks']} blocks open on average,"
        scaled = "every branch scaled by p_l"
        paper = (
            "The paper calls stochastic depth an implicit ensemble of networks of "
            "different depths."
        )
    return (
        f"A single drawn network{drawn} has {np.mean(single):.2f} % test error (mean "
        f"of {len(single)}; {min(single):.2f} to {max(single):.2f}). Averaging the "
        f"predictions of {size} such networks {gain} it: {whole:.2f} %. The test rule, "
        f"one network with {scaled}, has {rule:.2f} %, and is {verdict}. {paper}"
    )


STUDY = Study(
    "Drawn networks as an ensemble",
    f"Test error of the averaged predictions of k networks drawn as in training, k = 1 "
    f"to {NETWORKS}, and of the test rule (Huang et al. 2016, section 3; Singh et al. "
    "2016 for Swapout).",
    *(measure, draw, describe),
    order=14,
    missing=missing,
    uses=("seed",),
)
