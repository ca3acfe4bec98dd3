# SPDX-License-Identifier: Apache-2.0
"""Evidence for claims: runs, studies, benchmarks and exact numbers, kept as JSON.

All of it is below one folder, such as results/ of the repository:

- runs/TABLE/ROW-DATASET/seedN/summary.json, see `experiments.papers.results_page`;
- claims/TABLE/ROW-DATASET/seedN/STUDY.json, written by `experiments.analyze`;
- claims/start/NAME/seedN/STUDY.json, of untrained networks;
- claims/exact.json, what is computed from definitions alone;
- the results of benchmarks.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath
from scipy import stats

from rn_jax.filesystem import read_json

# The verdicts on a claim.
HOLDS = "holds"
FAILS = "does not hold here"
UNDECIDED = "not decided"
NOT_RUN = "not run here"
PENDING = "not run yet"

# The file of the exact numbers, in the folder of the evidence.
EXACT = "claims/exact.json"

# Differences that chance produces more often than this are not decided.
SIGNIFICANCE = 0.05


def _read_all(files: Any) -> Any:
    """Return a tree of JSON files with their contents; None unless all exist."""
    if not all(file.exists() for file in jax.tree.leaves(files)):
        return None
    return jax.tree.map(read_json, files)


@dataclass(frozen=True)
class Runs:
    """Rows of a table of `experiments.reproduce`, each trained with several seeds.

    Attributes:
        table: name of the table.
        rows: names of rows.
        dataset: data set of all rows.
        seeds: number of seeds, from 0.
    """

    table: str
    rows: tuple[str, ...]
    dataset: str = "digits"
    seeds: int = 3

    def places(self, row: str) -> list[str]:
        """Return the folder of each run of a row, below that of all runs."""
        folder = f"{self.table}/{row}-{self.dataset}"
        return [f"{folder}/seed{seed}" for seed in range(self.seeds)]

    def load(self, folder: epath.Path) -> dict[str, list[Any]] | None:
        """Return the summary of every run by row; None unless all have finished."""
        return _read_all(
            {
                row: [folder / "runs" / p / "summary.json" for p in self.places(row)]
                for row in self.rows
            }
        )


@dataclass(frozen=True)
class Studies:
    """Studies of the networks of one row, trained with several seeds.

    Attributes:
        runs: the runs, of one row.
        names: names of studies.
        images, draws: see `experiments.analyze`.
    """

    runs: Runs
    names: tuple[str, ...]
    images: int | None = None
    draws: int = 10

    @property
    def places(self) -> list[str]:
        """The folder of each run, below that of all runs or of all studies."""
        [row] = self.runs.rows
        return self.runs.places(row)

    def load(self, folder: epath.Path) -> list[dict[str, Any]] | None:
        """Return the studies of every run by name; None unless all are done."""
        studies = folder / "claims"
        return _read_all(
            [
                {name: studies / p / f"{name}.json" for name in self.names}
                for p in self.places
            ]
        )


@dataclass(frozen=True)
class Start:
    """A study of an untrained network, for several seeds.

    Attributes:
        model: name of the network.
        study: name of the study.
        fields: further fields of the network, as pairs.
        dataset: data set of the images.
        seeds: number of seeds, from 0.
    """

    model: str
    study: str
    fields: tuple[tuple[str, Any], ...] = ()
    dataset: str = "digits"
    seeds: int = 3

    @property
    def places(self) -> list[str]:
        """The folder of each seed, below that of all studies."""
        named = "-".join([self.model, *(f"{n}={v}" for n, v in self.fields)])
        return [f"start/{named}/seed{seed}" for seed in range(self.seeds)]

    def load(self, folder: epath.Path) -> list[Any] | None:
        """Return the study of every seed; None unless all are done."""
        studies = folder / "claims"
        return _read_all([studies / p / f"{self.study}.json" for p in self.places])


@dataclass(frozen=True)
class Exact:
    """Numbers that follow from definitions, a function of `experiments.papers.exact`.

    Attributes:
        name: name of the function.
    """

    name: str

    def load(self, folder: epath.Path) -> Any:
        """Return the numbers; None unless they have been computed."""
        return (_read_all(folder / EXACT) or {}).get(self.name)


@dataclass(frozen=True)
class Benchmark:
    """The result of a command that `experiments.claims` does not run.

    Attributes:
        file: the JSON file, in the folder of the evidence.
        command: the command that writes it.
    """

    file: str
    command: str

    def load(self, folder: epath.Path) -> Any:
        """Return the result; None if there is none."""
        return _read_all(folder / self.file)


Evidence = Runs | Studies | Start | Exact | Benchmark


@dataclass(frozen=True)
class Seen:
    """What was seen, as text without a final period, and the verdict on the claim."""

    text: str
    verdict: str


# --- Verdicts -------------------------------------------------------------------------


def proved(text: str, holds: bool) -> Seen:
    """Return the verdict on a claim that follows from definitions."""
    return Seen(text, HOLDS if holds else FAILS)


def lower(
    first: tuple[str, Sequence[float]],
    second: tuple[str, Sequence[float]],
    quantity: str,
    *,
    paired: bool = False,
) -> Seen:
    """Return the verdict on the claim that a quantity is lower in the first.

    Args:
        first, second: name and the value of each seed.
        quantity: what is compared, with its unit.
        paired: as for `compared`.
    """
    (one, here), (other, there) = first, second
    note, verdict = compared(here, there, paired=paired)
    shown = f"{one} {with_spread(here)}, {other} {with_spread(there)}"
    numbers = " and ".join(map(str, sorted({len(here), len(there)})))
    return Seen(f"{quantity}: {shown} ({numbers} seeds, {note})", verdict)


def compared(
    here: Sequence[float], there: Sequence[float], *, paired: bool = False
) -> tuple[str, str]:
    """Return how sure it is that the first values are lower, and the verdict on that.

    Welch's t-test over the seeds decides, see `SIGNIFICANCE`.

    Args:
        here, there: the value of each seed.
        paired: the values of a seed are of the same network; Student's t-test of their
            differences decides.
    """
    if min(len(here), len(there)) < 2:
        return "one run", UNDECIDED
    spread = (np.subtract(here, there),) if paired else (here, there)
    if all(np.ptp(values) == 0 for values in spread):
        return "no spread", UNDECIDED
    if paired:
        p = float(stats.ttest_rel(here, there).pvalue)
    else:
        p = float(stats.ttest_ind(here, there, equal_var=False).pvalue)
    verdict = HOLDS if statistics.fmean(here) < statistics.fmean(there) else FAILS
    return f"p = {p:.2g}", verdict if p <= SIGNIFICANCE else UNDECIDED


def in_every_run(text: str, held: Sequence[bool], refuted: Sequence[bool]) -> Seen:
    """Return the verdict on a claim that each of several networks can show.

    One network alone decides nothing, nor do networks that disagree.

    Args:
        text: what was seen.
        held: whether each network shows the claim.
        refuted: whether each shows the opposite.
    """
    text = f"{text} (in {sum(held)} of {len(held)} networks)"
    if len(held) > 1 and (all(held) or all(refuted)):
        return Seen(text, HOLDS if all(held) else FAILS)
    return Seen(text, UNDECIDED)


def with_spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean and the standard deviation of several seeds as text."""
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return text


def of(summaries: Mapping[str, Sequence[Any]], row: str, name: str) -> list[float]:
    """Return a number of the summary of each of a row's runs."""
    return [summary[name] for summary in summaries[row]]
