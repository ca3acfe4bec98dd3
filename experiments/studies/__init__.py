# SPDX-License-Identifier: Apache-2.0
"""Studies of a trained network: a module for each, with measurement, figure and text.

A new study is a module with a `STUDY`; a script sets `STUDIES["name"] = Study(...)`.
"""

import importlib
import json
import math
import pkgutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from experiments.studies.lab import Lab, no_gates, no_paths
from experiments.studies.subject import Subject

__all__ = ["STUDIES", "Lab", "Result", "Results", "Study", "Subject", "do"]
__all__ += ["no_gates", "no_paths"]

# A study's numbers for one network, as in its JSON, and for several, by their labels.
Result = Mapping[str, Any]
Results = Mapping[str, Result]


@dataclass(frozen=True)
class Study:
    """A study of trained networks.

    Attributes:
        title: title of its figure and its section of the report.
        question: what the figure shows, as a sentence.
        measure: returns the numbers as plain values for JSON. "measured_on" names the
            data in the figure's caption.
        draw: returns the figure, without title and legend, for the results of one or
            more networks in the order of the legend.
        describe: returns a paragraph on the result of one network.
        missing: returns why a network cannot be studied, as the end of a sentence, or
            None.
        uses: the options "draws", "seed" and "bounds" on which the numbers depend.
        compare: returns a paragraph on the results of several networks; None: there is
            none.
        columns: columns of the report's table of all networks: head -> function of a
            result that returns a cell.
        order: place in the report, by default after those of this project.
    """

    title: str
    question: str
    measure: Callable[[Lab], Result]
    draw: Callable[[Results], Figure]
    describe: Callable[[Result], str]
    missing: Callable[[Subject], str | None] = lambda subject: None
    uses: tuple[str, ...] = ()
    compare: Callable[[Results], str] | None = None
    columns: Mapping[str, Callable[[Result], str]] = field(default_factory=dict)
    order: float = math.inf


_modules = {
    module.name: importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
}
_found = {name: m.STUDY for name, m in _modules.items() if hasattr(m, "STUDY")}
# In the order of the report.
STUDIES: dict[str, Study] = dict(sorted(_found.items(), key=lambda s: s[1].order))


def do(name: str, lab: Lab, *, command: str) -> Result:
    """Run a study of `STUDIES`; return its JSON, and add it to `lab.earlier`.

    `command`, which runs the study, is recorded in the JSON.
    """
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
    lab.earlier[name] = json.loads(json.dumps(result))  # as when read from its file
    return lab.earlier[name]
