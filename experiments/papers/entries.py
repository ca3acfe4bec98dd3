# SPDX-License-Identifier: Apache-2.0
"""The rows of the papers' tables as they are trained, and comparisons of rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import configs
from configs.default import Config
from experiments.config import OF_NETWORK, load_config
from experiments.papers.tables import Table
from experiments.training import many_runs
from rn_jax.errors import InputError, unknown_name

# A row that the paper prints as "fail" has a test error above this (percent).
FAIL = 20


@dataclass(frozen=True)
class Entry:
    """A row on one of its data sets, as it is trained."""

    row: str
    dataset: str
    config: Config

    @property
    def published(self) -> float | None:
        """The paper's test error in percent; None if it has no number."""
        return self.config.published_error_percent.get(self.dataset)

    @property
    def error(self) -> str:
        """The name of our error that the protocol compares with it."""
        return many_runs.LAST if self.config.protocol == "full" else many_runs.AT_BEST


def entries(
    table: Table,
    only: str | None,
    dataset: str | None,
    arguments: Sequence[str],
    scale: float,
) -> list[Entry]:
    """Return the rows of a table, one entry for each data set.

    Args:
        table: one of TABLES.
        only, dataset, arguments: as for `experiments.reproduce.reproduce`.
        scale: see `shorten`.

    Raises:
        InputError: a row is unknown, or an override is bad.
    """
    names = list(table.rows) if only is None else only.split(",")
    for name in names:
        if name not in table.rows:
            raise unknown_name("row", name, table.rows)
    if len(set(names)) < len(names):
        raise InputError(f"--only has a row twice: {only}.")
    found = []
    for name in names:
        published = configs.get_config(table.rows[name]).published_error_percent
        own = [column for column in table.datasets if column in published]
        own = own or list(table.datasets)
        if "digits" in table.datasets and "digits" not in own:
            own.append("digits")
        for each in [dataset] if dataset else own:
            config = shorten(_config(table.rows[name], each, arguments), scale)
            found.append(Entry(name, each, config))
    return found


def _config(name, dataset, arguments):
    file = configs.FOLDER / f"{name}.py"
    _, config = load_config([f"--config={file}:{dataset}", *arguments])
    if config.dataset != dataset:
        raise InputError("Name the data set by --dataset, not by --config.dataset.")
    of_paper = configs.get_config(name).to_dict()  # whatever is overridden
    return replace(config, **{field: of_paper[field] for field in OF_NETWORK})


def shorten(config: Config, scale: float) -> Config:
    """Return the config with a schedule that is shorter in proportion, to rehearse it.

    The length, drops and warm-up in steps or epochs, the epoch in which stochastic
    depth begins and the patience with a plateau all shrink; fractions of the run are
    unchanged. The length is at least one epoch or step, and what is given in epochs
    shrinks as much as the rounded number of epochs. Evaluation frequency is unchanged.
    `scale` is in (0, 1]; 1 leaves the config unchanged.

    Raises:
        InputError: two drops would fall on one step.
    """
    if scale == 1:
        return config

    def whole(value, least):
        return None if value is None else max(least, round(value * scale))

    def length(value, unit):
        return round(value * scale) if unit == "steps" else value * ratio[unit]

    epochs = whole(config.epochs, 1)
    ratio = {"fraction": 1.0, "epochs": scale}
    if config.epochs is not None:
        ratio["epochs"] = epochs / config.epochs
    drops = tuple(length(drop, config.lr_drops_unit) for drop in config.lr_drops)
    if len(set(drops)) < len(drops):
        raise InputError(
            f"--scale={scale:g} is too short: the learning rate would drop twice in "
            "one step."
        )
    return replace(
        config,
        epochs=epochs,
        steps=whole(config.steps, 1),
        lr_drops=drops,
        warmup=length(config.warmup, config.warmup_unit),
        stochastic_depth_from_epoch=whole(config.stochastic_depth_from_epoch, 0),
        plateau_patience=whole(config.plateau_patience, 1),
    )


def differences(
    table: Table, found: Sequence[Entry], results: Sequence[many_runs.Result]
) -> list[dict[str, Any]]:
    """Return the differences between rows that a table compares.

    Args:
        table: one of TABLES.
        found: the rows.
        results: their `many_runs.results`, in the same order.

    Returns:
        A dict for each pair of rows that have ended on a data set: rows, dataset,
        ours_points and published_points (points of test error; None if the paper has
        none), and says, a sentence.
    """
    ours, published = {}, {}
    for entry, result in zip(found, results, strict=True):
        ours[entry.row, entry.dataset] = our_error(table, entry, result)
        published[entry.row, entry.dataset] = entry.published
    compared = []
    for one, other in table.differences:
        for dataset in dict.fromkeys(entry.dataset for entry in found):
            pair = [(one, dataset), (other, dataset)]
            points = _minus(ours, pair)
            if points is None:
                continue
            theirs = _minus(published, pair)
            direction = "worse" if points > 0 else "better" if points < 0 else "equal"
            in_paper = "no figure" if theirs is None else f"{theirs:+.2f}"
            line = {
                "rows": [one, other],
                "dataset": dataset,
                "ours_points": points,
                "published_points": theirs,
                "says": f"{one} minus {other} on {dataset}: {points:+.2f} points of "
                f"test error ({direction}); {in_paper} in the paper.",
            }
            compared.append(line)
    return compared


def _minus(errors, pair):
    one, other = (errors.get(key) for key in pair)
    return None if one is None or other is None else one - other


def our_error(table: Table, entry: Entry, result: many_runs.Result) -> float | None:
    """Return our error that compares with the paper's; None if no run has ended."""
    described = result.get(entry.error)
    return described and described[table.statistic]


def published_cell(entry: Entry) -> str:
    """Return the paper's number as a table prints it."""
    if entry.config.expected_to_fail:
        return f"fail (> {FAIL} %)"
    return "-" if entry.published is None else f"{entry.published:.2f}"
