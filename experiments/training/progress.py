# SPDX-License-Identifier: Apache-2.0
"""The progress that a person sees: a bar on a terminal, lines elsewhere."""

import sys

from tqdm import tqdm


class Progress:
    """A bar with epoch, loss, error, images/s and time left, or a line per epoch.

    Args:
        total: number of steps of the whole run.
        done: number of steps before the run was resumed.
        batch_size: images per step.
        shown: False for no bar, even on a terminal.
    """

    def __init__(self, *, total: int, done: int, batch_size: int, shown: bool):
        self._batch_size = batch_size
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="step",
            disable=not (shown and sys.stderr and sys.stderr.isatty()),
            dynamic_ncols=True,
        )

    def advance(
        self, steps: int, epoch: int, loss: float, error_percent: float
    ) -> None:
        """Show that steps have ended, and the metrics of the last of them."""
        if self._bar.disable:
            return
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        rate = self._bar.format_dict["rate"] or 0
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, error {error_percent:.1f} %, "
            f"{rate * self._batch_size:.0f} images/s",
            refresh=False,
        )
        self._bar.update(steps)

    def say(self, sentence: str) -> None:
        """Print a line without disturbing the bar."""
        with self._bar.external_write_mode():
            print(sentence, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()
