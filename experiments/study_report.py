# SPDX-License-Identifier: Apache-2.0
"""The report of an analysis: its figures, and in words what is seen in them."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from scipy import stats

from experiments.workdir import replace_file
from rn_jax.analysis import study_plots
from rn_jax.analysis.plots import as_text

Result = Mapping[str, Any]

# Points of test error within which a network counts as unharmed in what is told.
UNHARMED = 1.0
# Points that one deleted block must cost to be called needed.
NEEDED = 5.0
# Share of the mean path length below which the gradient's mean length counts as short.
SHORTER = 0.8


def write(
    folder: epath.Path,
    studies: Sequence[str],
    found: Mapping[str, Mapping[str, Result]],
    reasons: Mapping[str, Mapping[str, str | None]],
    *,
    command: str,
) -> None:
    """Draws NAME.png of every study and writes report.md.

    Args:
        folder: where they go.
        studies: names, in order.
        found: label of the network -> study -> its JSON.
        reasons: label -> study -> why it cannot be done, or None.
        command: that writes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    networks = {label: next(iter(r.values())) for label, r in found.items() if r}
    lines = [f"# Studies of {', '.join(found)}", "", *_networks(networks), ""]
    lines += [*_commands(found, command), ""]
    for study in studies:
        section = SECTIONS[study]
        lines += [f"## {section.title}", ""]
        results = {label: r[study] for label, r in found.items() if study in r}
        if results:
            title = f"{section.title}\n{_conditions(results)}"
            drawn = {as_text(label): r for label, r in results.items()}
            section.draw(drawn, folder / f"{study}.png", title=as_text(title))
            lines += [f"![{section.title}]({study}.png)", "", section.question]
        for label in found:
            if label in results:
                told = section.tell(results[label])
            else:
                reason = reasons.get(label, {}).get(study)
                told = f"Not done: {reason or 'not asked for, or interrupted'}."
            lines += ["", f"**{label}.** {told}"]
        if section.compare and len(results) > 1:
            lines += ["", section.compare(results)]
        lines += [""]
    lines += [*_summary(found, networks), *_times(found)]
    replace_file(folder / "report.md", "\n".join(lines))


def _conditions(results):
    """Data, images and gates of every network, for the title of a figure."""
    return "\n".join(
        textwrap.fill(
            f"{label}: {r['model']} on {r['dataset']}, {r['measured_on']}; gates: "
            f"{r['gates']}",
            width=110,
        )
        for label, r in results.items()
    )


def _times(found):
    """What each study took, and where."""
    rows = [
        [label, study, f"{r['seconds']:.0f}", r["device"]]
        for label, results in found.items()
        for study, r in results.items()
    ]
    head = ["network", "study", "seconds", "devices"]
    return ["## Time", "", *table(head, rows), ""]


def _networks(networks):
    rows = [
        [
            label,
            r["model"],
            r["dataset"],
            f"{r['images']:,} of {r['test_images']:,}",
            r["gates"],
            f"{r['baseline_error_percent']:.2f}",
        ]
        for label, r in networks.items()
    ]
    head = ["network", "model", "data set", "test images", "gates", "test error (%)"]
    return table(head, rows)


def _commands(found, command):
    """That of the page, and of the studies that were there already."""
    earlier = {r["command"] for results in found.values() for r in results.values()}
    earlier -= {command}
    lines = [f"    {command}"]
    if earlier:
        lines += ["", "with studies that were there, by", ""]
        lines += [f"    {line}" for line in sorted(earlier)]
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    cells = [[" ".join(c.replace("|", r"\|").split()) for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


# --- What is seen ---------------------------------------------------------------------


def _damages(result):
    """Damage in points of the blocks of one shape, and of the transitions."""
    base = result["baseline_error_percent"]
    marks = [b for b in result["blocks"] if b["error_percent"] is not None]
    inner = [b["error_percent"] - base for b in marks if not b["transition"]]
    across = [b["error_percent"] - base for b in marks if b["transition"]]
    return np.array(inner), np.array(across)


def _tell_delete_one(result):
    inner, across = _damages(result)
    base = result["baseline_error_percent"]
    kind = "blocks that keep the shape of their input" if len(across) else "blocks"
    told = (
        f"The whole network errs on {base:.2f} %. Deleting one of {len(inner)} {kind} "
        f"costs {np.median(inner):.2f} points at the median and {inner.max():.2f} at "
        f"most; {(inner <= UNHARMED).sum()} of them cost {UNHARMED:g} point or less."
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
    chance = _chance(result)
    halfway = (base + chance) / 2
    broken = (inner + base > halfway).sum()
    return (
        f"{told} Chance is {chance:.0f} %: {broken} of {len(inner)} deletions bring "
        f"the error past {halfway:.0f} %, half of the way. The paper saw the error of "
        "VGG go to chance whichever layer was deleted."
    )


def _chance(result):
    """Test error of guessing, in percent."""
    return 100 * (1 - 1 / result["num_classes"])


def _too_near_chance(result):
    """Why a network is not to be compared with the paper's, or nothing."""
    chance = _chance(result)
    if result["baseline_error_percent"] <= chance / 2:
        return ""
    return (
        f"A network that errs more than half as often as guessing, {chance:.0f} %, has "
        "too little to lose to be compared with the paper's."
    )


def _agreement(result, inner, across):
    """Whether single deletions harm as little as the paper saw."""
    if near := _too_near_chance(result):
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


def _tell_delete_many(result):
    medians = [float(np.median(e)) for e in result["error_percent"]]
    k = result["deleted"]
    at = sorted({1, k[len(k) // 2], k[-1]} & set(k))
    shown = ", ".join(f"{medians[k.index(n)]:.2f} % with {n}" for n in at)
    told = (
        f"Of {result['deletable']} blocks, the median error over {result['draws']} "
        f"draws is {result['baseline_error_percent']:.2f} % with none deleted, {shown}."
    )
    if len(k) < 3 or np.ptp(medians) == 0:
        return told
    rho = stats.spearmanr(k, medians).statistic
    jump = np.diff([result["baseline_error_percent"], *medians]).max()
    smooth = (
        "It rises smoothly, as in the paper."
        if rho > 0.9 and jump < 15
        else "That is no smooth rise as the paper's: one or a few blocks decide."
    )
    return (
        f"{told} Rank correlation of k and the median is {rho:.2f}; the largest step "
        f"from one k to the next is {jump:.1f} points. "
        f"{_too_near_chance(result) or smooth}"
    )


def _tell_permute(result):
    tau = [order["kendall_tau"] for order in result["orders"]]
    error = [order["error_percent"] for order in result["orders"]]
    by: dict[int, list[float]] = {}
    for order in result["orders"]:
        by.setdefault(order["swaps"], []).append(order["error_percent"])
    swaps = sorted(by)
    shown = ", ".join(
        f"{np.median(by[n]):.2f} % after {n}" for n in (swaps[0], swaps[-1])
    )
    told = (
        f"{result['pairs']} pairs of blocks can change places. The median error is "
        f"{result['baseline_error_percent']:.2f} % in the trained order and {shown} "
        f"random swaps (tau down to {min(tau):.2f})."
    )
    if np.ptp(tau) == 0 or np.ptp(error) == 0:
        return told
    rho = stats.spearmanr(tau, error).statistic
    told = f"{told} Rank correlation of tau and the error is {rho:.2f}"
    if not result["residual"]:
        return f"{told}. The paper reorders residual networks alone."
    if near := _too_near_chance(result):
        return f"{told}. {near}"
    return told + (
        "; the more the order is corrupted the larger the error, as in the paper."
        if rho < -0.5
        else "; the paper's smooth rise is not seen here."
    )


def _lengths(about):
    low, high = about["interval_95"]
    shares = "".join(
        f"; {s['from']} to {s['to']}: {100 * s['share']:.3g} %" for s in about["shares"]
    )
    return f"mean {about['mean']:.1f}, 95 % within {low} to {high}{shares}"


def _tell_path_lengths(result):
    blocks = result["num_blocks"]
    told = f"All 2^{blocks} paths: {_lengths(result['paths'])}."
    if "open_blocks" in result:
        told += (
            f" Blocks open in training: {_lengths(result['open_blocks'])}. "
            f"Paths through them: {_lengths(result['paths_in_training'])}."
        )
    return told + (
        " These are exact: they follow from the number of blocks and the survival "
        "probabilities, not from the weights."
    )


def _tell_path_gradients(result):
    means = np.array(result["relative_mean"])
    lengths = np.arange(len(means))
    known = means > 0
    slope = np.polyfit(lengths[known], np.log(means[known]), 1)[0]
    contribution, everything = result["contribution"], result["paths"]
    low, high = contribution["interval_95"]
    held = float(np.sum(everything["weights"][low : high + 1]))
    change = (
        f"shrinks by a factor of {np.exp(-slope):.2f}"
        if slope < 0
        else f"grows by a factor of {np.exp(slope):.2f}"
    )
    ratio = contribution["mean"] / everything["mean"]
    if ratio < SHORTER:
        verdict = "As in the paper, the gradient comes through paths shorter than most."
    elif ratio < 1:
        verdict = (
            "These are shorter than most, but not by as much as the paper found in a "
            "deeper network."
        )
    else:
        verdict = "The paper found the gradient in the short paths; here it is not."
    plain = result["contribution_of_norms"]["interval_95"]
    return (
        f"With every block on a path its gradient {change} (fitted over all lengths). "
        f"Times the number of paths, 95 % of the gradient comes through lengths {low} "
        f"to {high}, mean {contribution['mean']:.1f}; {100 * held:.3g} % of all paths "
        f"are there, whose mean is {everything['mean']:.1f}. {verdict} (The paper: 5 "
        "to 17 of 54 blocks, 0.45 % of the paths. Norms that are not divided by their "
        f"image's, and so come from the hardest images, give {plain[0]} to {plain[1]}.)"
    )


def _tell_short_paths(result):
    final = result["test_error_percent"]
    if result["open_in_training"] is None:
        how = "stochastic depth" if result["stochastic_depth"] else "all blocks open"
        return f"Trained with {how}: {final:.2f} % test error."
    lengths = _lengths(result["paths_in_training"])
    return (
        f"From epoch {result['from_epoch'] + 1} on, {result['open_in_training']} of "
        f"{result['num_blocks']} blocks were open in every mini-batch: {final:.2f} % "
        f"test error. Paths in training: {lengths}. The paper has 5.96 % on CIFAR-10 "
        "with 23 of 54, 6.10 % with all."
    )


def _tell_gradient_magnitude(result):
    gradient = np.array(result["first_gradient"])
    quarter = max(1, len(gradient) // 4)
    return (
        f"The mean magnitude over epochs is {gradient.mean():.2e} nats; "
        f"{gradient[:quarter].mean():.2e} in the first quarter and "
        f"{gradient[-quarter:].mean():.2e} in the last. The paper finds it larger with "
        "stochastic depth than at constant depth, most clearly after the rate drops."
    )


def _compare_gradients(found):
    (first, one), *others = found.items()
    ours = dict(zip(one["epochs"], one["first_gradient"], strict=True))
    rates = dict(zip(one["epochs"], one["learning_rate"], strict=True))
    told = []
    for label, other in others:
        theirs = dict(zip(other["epochs"], other["first_gradient"], strict=True))
        ratios = {e: ours[e] / theirs[e] for e in ours if theirs.get(e)}
        after = [r for e, r in ratios.items() if rates[e] < max(rates.values())]
        if ratios:
            late = f", {np.median(after):.2f} after the rate drops" if after else ""
            median = np.median(list(ratios.values()))
            told.append(f"{first} over {label}: {median:.2f} at the median{late}.")
    return f"**Ratio of the gradients by epoch.** {' '.join(told)}"


def _tell_layer_responses(result):
    deviations = np.array(result["standard_deviation"])
    top = int(deviations.argmax())
    return (
        f"Over {len(deviations)} layers the standard deviation is "
        f"{np.median(deviations):.2f} at the median, {deviations.min():.2f} to "
        f"{deviations.max():.2f} ({result['layers'][top]}). The paper finds smaller "
        "responses in residual networks than in plain ones, and in deeper ones."
    )


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


def _tell_depth_dial(result):
    counts = {n: _unharmed_depth(result, n) for n in result["error_percent"]}
    return (
        f"Of {result['closed'][-1]} blocks, {counts['damage']} can be closed at a cost "
        f"of {UNHARMED:g} point or less if those with the least damage go first, "
        f"{counts['survival']} if the least likely to survive, or the deepest, do, and "
        f"{counts['random']} at random (in steps of the figure)."
    )


def _tell_survival_damage(result):
    found = result["spearman_without_transitions"]
    name = {"p_l": "the survival probability p_l", "l/L": "the depth l/L"}[result["by"]]
    if found is None:
        return f"There is no rank correlation with {name}: one of the two is constant."
    rho, p = found["rho"], found["p_value"]
    whole = result["spearman"]
    return (
        f"Rank correlation of {name} with the damage of deleting block l, transitions "
        f"left out, is {rho:.2f} (p = {p:.2g}); {whole['rho']:.2f} with them. "
        + (
            "No relation can be told from chance."
            if p > 0.05
            else f"Where {name} is larger, deleting costs "
            f"{'more' if rho > 0 else 'less'}."
        )
    )


# --- The summary across networks ------------------------------------------------------


def _summary(found, networks):
    if len(networks) < 2:
        return []

    def of(study, label, value):
        return value(found[label][study]) if study in found[label] else ""

    rows = [
        [
            label,
            f"{network['baseline_error_percent']:.2f}",
            of("delete_one", label, lambda r: f"{np.median(_damages(r)[0]):.2f}"),
            of("delete_one", label, lambda r: f"{_damages(r)[0].max():.2f}"),
            of("delete_many", label, _five_deleted),
            of("depth_dial", label, lambda r: f"{_unharmed_depth(r, 'damage')}"),
            of("path_gradients", label, lambda r: f"{r['contribution']['mean']:.1f}"),
        ]
        for label, network in networks.items()
    ]
    head = [
        "network",
        "test error (%)",
        "one block deleted: median damage",
        "most",
        "5 blocks deleted: error (%)",
        f"closed for {UNHARMED:g} point",
        "mean length of the gradient's paths",
    ]
    return ["## Across networks", "", *table(head, rows), ""]


def _five_deleted(result):
    if 5 not in result["deleted"]:
        return ""
    return f"{np.median(result['error_percent'][result['deleted'].index(5)]):.2f}"


@dataclass(frozen=True)
class Section:
    """A study's place in the report.

    Attributes:
        title: of its section and figure.
        question: what the figure shows.
        draw: the figure.
        tell: a paragraph on one network's result.
        compare: a paragraph on several networks' results; None: nothing to add.
    """

    title: str
    question: str
    draw: Callable
    tell: Callable[[Result], str]
    compare: Callable[[Mapping[str, Result]], str] | None = None


SECTIONS: Mapping[str, Section] = {
    "delete_one": Section(
        "Deleting one block",
        "Test error after deleting each block in turn (Veit et al. 2016, 4.1).",
        study_plots.delete_one,
        _tell_delete_one,
    ),
    "delete_many": Section(
        "Deleting several blocks",
        "Test error after deleting k random blocks (Veit et al. 2016, 4.2).",
        study_plots.delete_many,
        _tell_delete_many,
    ),
    "permute": Section(
        "Another order of the blocks",
        "Test error after random swaps of blocks of one shape within a stage, by "
        "Kendall's rank correlation with the trained order (Veit et al. 2016, 4.2).",
        study_plots.permute,
        _tell_permute,
    ),
    "path_lengths": Section(
        "Lengths of paths",
        "How many of the 2^L paths have which length (Veit et al. 2016, 4.3).",
        study_plots.path_lengths,
        _tell_path_lengths,
    ),
    "path_gradients": Section(
        "Gradient by path length",
        "Gradient that reaches the image along single paths, over the whole gradient "
        "of the image, for training images without augmentation and BatchNorm by its "
        "moving averages; times the number of paths it gives the lengths that carry "
        "the gradient (Veit et al. 2016, 4.3).",
        study_plots.path_gradients,
        _tell_path_gradients,
    ),
    "short_paths": Section(
        "Training on short paths",
        "Test error by epoch; a vertical line where training with exactly k open "
        "blocks begins (Veit et al. 2016, 4.3).",
        study_plots.short_paths,
        _tell_short_paths,
    ),
    "gradient_magnitude": Section(
        "Gradient of the first convolution",
        "Mean magnitude of the gradient of the first block's first convolution, by "
        "epoch (Huang et al. 2016, figure 7).",
        study_plots.gradient_magnitude,
        _tell_gradient_magnitude,
        _compare_gradients,
    ),
    "layer_responses": Section(
        "Responses of the layers",
        "Standard deviation of each layer's output, after BatchNorm and before the "
        "activation or the sum; of the convolution where BatchNorm comes first "
        "(He et al. 2015, figure 7).",
        study_plots.layer_responses,
        _tell_layer_responses,
    ),
    "depth_dial": Section(
        "The depth dial",
        "Test error by the number of open blocks, for three ways to choose those to "
        "close (not in the papers).",
        study_plots.depth_dial,
        _tell_depth_dial,
    ),
    "survival_damage": Section(
        "Survival probability and damage",
        "Damage of deleting block l by its survival probability, or by its depth (not "
        "in the papers).",
        study_plots.survival_damage,
        _tell_survival_damage,
    ),
}
