# SPDX-License-Identifier: Apache-2.0
"""Studies of a trained network, a module each: what it measures, draws and says.

A new study is a module with a `STUDY`, whose name is added to `STUDIES`; a script adds
`STUDIES["name"] = Study(...)`.
"""

import importlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from experiments.studies.lab import Lab, no_gates, no_paths
from experiments.studies.subject import Subject

__all__ = ["STUDIES", "Lab", "Result", "Results", "Study", "Subject", "do"]
__all__ += ["no_gates", "no_paths"]

# What a study found of one network, as its JSON has it; of several, by their labels.
Result = Mapping[str, Any]
Results = Mapping[str, Result]


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        title: of its figure and its section of the report.
        question: what the figure shows, as a sentence.
        measure: gives the numbers as plain values for JSON. "measured_on" says what
            they are of, for the title of the figure.
        draw: gives the figure, without a title, of the results of one or more networks
            in the order of the legend.
        tell: gives a paragraph on one network's result.
        missing: why a network cannot be studied, as the end of a sentence; or None.
        uses: "draws", "seed" or "bounds", if the numbers depend on these options.
        compare: gives a paragraph on several networks' results; None: nothing to add.
        columns: of the report's table of all networks: head -> cell of a result.
    """

    title: str
    question: str
    measure: Callable[[Lab], Result]
    draw: Callable[[Results], Figure]
    tell: Callable[[Result], str]
    missing: Callable[[Subject], str | None] = lambda subject: None
    uses: tuple[str, ...] = ()
    compare: Callable[[Results], str] | None = None
    columns: Mapping[str, Callable[[Result], str]] = field(default_factory=dict)


# In the order of the report.
STUDIES: dict[str, Study] = {
    name: importlib.import_module(f"experiments.studies.{name}").STUDY
    for name in (
        *("delete_one", "delete_many", "permute"),
        *("path_lengths", "path_gradients", "short_paths"),
        *("gradient_magnitude", "layer_responses"),
        *("depth_dial", "survival_damage"),
    )
}


def do(name: str, lab: Lab, *, command: str) -> Result:
    """Do a study of that name, and give its JSON, which is kept in `lab.earlier`."""
    start = time.perf_counter()
    numbers = STUDIES[name].measure(lab)
    result = {
        "study": name,
        **lab.facts,
        "command": command,
        "baseline_error_percent": lab.baseline,
        "seconds": time.perf_counter() - start,
        **numbers,
    }
    lab.earlier[name] = json.loads(json.dumps(result))  # as it is read from its file
    return lab.earlier[name]
