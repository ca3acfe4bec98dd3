# SPDX-License-Identifier: Apache-2.0
"""The progress that a person sees: a bar on a terminal or in a notebook, else lines."""

import sys
import warnings
from collections.abc import Iterable
from typing import Any

import tqdm.asyncio

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a notebook without ipywidgets
    import tqdm.auto

# Jupyter's stderr is no terminal, but shows widgets.
_HAS_WIDGETS = tqdm.auto.tqdm is not tqdm.asyncio.tqdm


def bar(
    values: Iterable | None = None, *, shown: bool = True, **options: Any
) -> tqdm.tqdm:
    """Return a bar of tqdm, which is disabled where it would be printed line by line.

    Args:
        values: iterated over by the bar.
        shown: False for no bar anywhere.
        options: further arguments of tqdm.
    """
    visible = _HAS_WIDGETS or (sys.stderr and sys.stderr.isatty())
    return tqdm.auto.tqdm(values, disable=not (shown and visible), **options)


class Progress:
    """A bar with epoch, loss, error, images/s and time left, or a line per epoch.

    While the first step is compiled, that is all that it shows: times begin after it.

    Args:
        total: number of steps of the whole run.
        done: number of steps before the run was resumed.
        batch_size: images per step.
        shown: False for nothing but what `say` prints.
    """

    def __init__(self, *, total: int, done: int, batch_size: int, shown: bool):
        self._batch_size = batch_size
        self._bar = bar(
            shown=shown,
            total=total,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            bar_format="compiling ...",
        )
        if shown and self._bar.disable:
            self.say("Compiling the training step ...")

    def advance(
        self, steps: int, epoch: int, loss: float, error_percent: float
    ) -> None:
        """Show that steps have ended, and the metrics of the last of them."""
        if self._bar.disable:
            return
        if compiled := bool(self._bar.bar_format):  # these steps began before it
            self._bar.bar_format = None
            self._bar.unpause()
            self._bar.n += steps
            self._bar.initial = self._bar.last_print_n = self._bar.n
            steps = 0
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        shown = f"loss {loss:.3f}, error {error_percent:.1f} %"
        if rate := self._bar.format_dict["rate"]:
            shown += f", {rate * self._batch_size:.0f} images/s"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(steps)
        if compiled:
            self._bar.refresh()

    def say(self, sentence: str) -> None:
        """Print a line without disturbing the bar."""
        with self._bar.external_write_mode():
            print(sentence, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()
