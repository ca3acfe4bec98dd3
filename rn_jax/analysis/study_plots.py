# SPDX-License-Identifier: Apache-2.0
"""Figures of the studies, one function each, several networks laid over each other.

Each takes `results`, the label of each network -> its JSON, in the order of the
legend, `path` of the PNG and `title`. Lines differ by grey, dashes and markers, so that
they can be told apart in black and white.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rn_jax.analysis.plots import save

Results = Mapping[str, Mapping[str, Any]]

# Of lines over each other.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "0.0", "linestyle": "-", "marker": "o"},
    {"color": "0.5", "linestyle": "--", "marker": "s"},
    {"color": "0.3", "linestyle": ":", "marker": "^"},
    {"color": "0.7", "linestyle": "-.", "marker": "D"},
    {"color": "0.0", "linestyle": "--", "marker": "v"},
    {"color": "0.5", "linestyle": "-", "marker": "P"},
)


def delete_one(results: Results, path: epath.PathLike, *, title: str) -> None:
    """Error by deleted block; hollow: transitions; crosses: cannot be deleted."""
    figure, axes = _figure(title)
    for (label, result), style in _styled(results):
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
    axes.set(xlabel="deleted block $l$", xlim=(0.4, last + 0.6))
    axes.set(ylabel="test error (%)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, axes, path)


def delete_many(results: Results, path: epath.PathLike, *, title: str) -> None:
    """Boxes of the error by the number of deleted blocks; the whole network at 0."""
    figure, axes = _figure(title)
    width = 0.7 / len(results)
    for i, ((label, result), style) in enumerate(_styled(results)):
        shift = (i - (len(results) - 1) / 2) * width
        place = np.array([0, *result["deleted"]]) + shift
        boxes = [[result["baseline_error_percent"]], *result["error_percent"]]
        colour = {"color": style["color"]}
        axes.boxplot(
            boxes,
            positions=place,
            widths=width * 0.8,
            manage_ticks=False,
            boxprops=colour,
            whiskerprops=colour,
            capprops=colour,
            medianprops=colour,
            flierprops={"markersize": 3, "markeredgecolor": style["color"]},
        )
        medians = [np.median(box) for box in boxes]
        axes.plot(place, medians, **style, markersize=3, linewidth=0.8, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="blocks deleted together, $k$", ylabel="test error (%)", ylim=(0, None)
    )
    _finish(figure, axes, path)


def permute(results: Results, path: epath.PathLike, *, title: str) -> None:
    """Error by Kendall's tau of the order; the trained order is at 1, on the left."""
    figure, axes = _figure(title)
    for (label, result), style in _styled(results):
        tau = [order["kendall_tau"] for order in result["orders"]]
        error = [order["error_percent"] for order in result["orders"]]
        look = {**style, "linestyle": ""}
        axes.plot(tau, error, **look, markersize=4, alpha=0.7, label=label)
        axes.axhline(
            result["baseline_error_percent"],
            color=style["color"],
            linestyle=":",
            linewidth=0.8,
        )
    axes.plot([], [], "k:", linewidth=0.8, label="trained order")
    axes.invert_xaxis()
    axes.set(
        xlabel="Kendall's tau with the trained order",
        ylabel="test error (%)",
        ylim=(0, None),
    )
    _finish(figure, axes, path)


def path_lengths(results: Results, path: epath.PathLike, *, title: str) -> None:
    """Distributions of path lengths, and of open blocks in training."""
    figure, axes = _figure(title)
    names = {
        "paths": "all paths",
        "open_blocks": "open blocks in training",
        "paths_in_training": "paths in training",
    }
    lines = [
        (f"{label}: {says}", result[name])
        for label, result in results.items()
        for name, says in names.items()
        if name in result
    ]
    for (label, found), style in zip(lines, itertools.cycle(STYLES), strict=False):
        low, high = found["interval_95"]
        shown = f"{label} (95 % within {low} to {high})"
        axes.plot(found["weights"], **style, markersize=3, label=shown)
    axes.set(xlabel="length (blocks)", ylabel="share", ylim=(0, None))
    _finish(figure, axes, path)


def path_gradients(results: Results, path: epath.PathLike, *, title: str) -> None:
    """Share of paths, gradient of one path, and their product, by length."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(title, fontsize="small")
    panels = figure.subplots(1, 3)
    for (label, result), style in _styled(results):
        look = {**style, "markersize": 3, "label": label}
        panels[0].plot(result["paths"]["weights"], **look)
        panels[1].plot(result["relative_mean"], **look)
        weights = np.array(result["contribution"]["weights"])
        panels[2].plot(weights / weights.sum(), **look)
        low, high = result["contribution"]["interval_95"]
        panels[2].axvspan(
            low - 0.5,
            high + 0.5,
            color=style["color"],
            alpha=0.12,
            label=f"95 %: {low} to {high}",
        )
    panels[0].set(ylabel="share of all paths", title="how many there are")
    panels[1].set(
        ylabel="norm, over that of the whole gradient",
        title="gradient along one path",
        yscale="log",
    )
    panels[2].set(ylabel="share of the gradient", title="their product")
    for axes in panels:
        axes.set_xlabel("path length (blocks)")
        axes.grid(alpha=0.3)
    panels[2].legend(fontsize="small")
    save(figure, path)


def short_paths(results: Results, path: epath.PathLike, *, title: str) -> None:
    """Test error by epoch, and where training on short paths began."""
    figure, axes = _figure(title)
    for (label, result), style in _styled(results):
        k = result["open_in_training"]
        says = "stochastic depth" if result["stochastic_depth"] else "all blocks"
        says = says if k is None else f"exactly {k} blocks open"
        errors = result["test_error_by_epoch"]
        axes.plot(
            result["epochs"], errors, **style, markersize=3, label=f"{label} ({says})"
        )
        if k is not None:
            axes.axvline(result["from_epoch"], color=style["color"], linewidth=0.8)
    axes.set(xlabel="epoch", ylabel="test error (%)", ylim=(0, None))
    _finish(figure, axes, path)


def gradient_magnitude(results: Results, path: epath.PathLike, *, title: str) -> None:
    """Mean magnitude of the first block's first kernel's gradient, by epoch."""
    figure, axes = _figure(title)
    for (label, result), style in _styled(results):
        axes.plot(
            result["epochs"],
            result["first_gradient"],
            **style,
            markersize=3,
            label=label,
        )
        rates = itertools.pairwise(result["learning_rate"])
        for epoch, (before, after) in zip(result["epochs"], rates, strict=False):
            if after < before:
                axes.axvline(epoch + 0.5, color="0.8", linewidth=0.8, zorder=0)
    axes.plot([], [], color="0.8", linewidth=0.8, label="learning rate drops")
    axes.set(
        xlabel="epoch", ylabel="mean magnitude of the gradient (nats)", yscale="log"
    )
    _finish(figure, axes, path)


def layer_responses(results: Results, path: epath.PathLike, *, title: str) -> None:
    """Standard deviation by layer, in order and by magnitude."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title, fontsize="small")
    left, right = figure.subplots(1, 2, sharey=True)
    for (label, result), style in _styled(results):
        deviations = np.array(result["standard_deviation"])
        place = np.arange(1, len(deviations) + 1)
        left.plot(place, deviations, **style, markersize=3, label=label)
        right.plot(place, np.sort(deviations)[::-1], **style, markersize=3)
    left.set(xlabel="layer, in order", ylabel="standard deviation of the output")
    left.set_ylim(0, 1.05 * left.dataLim.ymax)
    right.set(xlabel="layer, by magnitude")
    right.grid(alpha=0.3)
    _finish(figure, left, path)


def depth_dial(results: Results, path: epath.PathLike, *, title: str) -> None:
    """Error by the number of open blocks; random choices: median and middle half."""
    names = {
        "survival": "closed: the least likely to survive, or deepest, first",
        "damage": "closed: those of the least damage first",
        "random": "closed: at random",
    }
    figure = Figure(figsize=(max(8, 5.0 * len(results)), 5), layout="constrained")
    figure.suptitle(title, fontsize="small")
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for axes, (label, result) in zip(panels, results.items(), strict=True):
        for (name, says), style in zip(names.items(), STYLES, strict=False):
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
        axes.axhline(
            result["baseline_error_percent"], color="k", linestyle=":", linewidth=0.8
        )
        axes.set(title=label, xlabel="open blocks", ylim=(0, None))
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test error (%)")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", fontsize="small", ncols=2)
    save(figure, path)


def survival_damage(results: Results, path: epath.PathLike, *, title: str) -> None:
    """What deleting a block costs, by its survival probability or its depth."""
    figure = Figure(figsize=(max(8, 5.0 * len(results)), 5), layout="constrained")
    figure.suptitle(title, fontsize="small")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (label, result) in zip(panels, results.items(), strict=True):
        x, y = np.array(result["x"]), np.array(result["damage_points"])
        shown, hollow = np.array(result["deletable"]), np.array(result["transition"])
        inner = shown & ~hollow
        axes.plot(x[inner], y[inner], "ko", markersize=4)
        axes.plot(
            x[shown & hollow],
            y[shown & hollow],
            "ko",
            markerfacecolor="white",
            markersize=9,
            label="transition",
        )
        found = result["spearman_without_transitions"]
        says = (
            "no rank correlation to be had"
            if found is None
            else f"without transitions: Spearman {found['rho']:.2f}"
        )
        by = {"p_l": "survival probability $p_l$", "l/L": "depth $l/L$"}[result["by"]]
        axes.set(title=f"{label}\n{says}", xlabel=by)
        axes.grid(alpha=0.3)
        if (shown & hollow).any():
            axes.legend()
    panels[0].set_ylabel("damage of deleting block $l$ (points of test error)")
    save(figure, path)


def _figure(title: str):
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize="small")
    return figure, axes


def _styled(results: Results) -> Iterator[tuple[tuple[str, Any], dict[str, str]]]:
    return zip(results.items(), itertools.cycle(STYLES), strict=False)


def _finish(figure, axes, path) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save(figure, path)
