# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: the last two and the best, through Orbax.

A checkpoint is a plain nested dict of arrays and a small record in JSON, so it can be
read without this project's classes. Saving is asynchronous; a checkpoint that was not
written to its end does not count.
"""

import contextlib
import dataclasses
import hashlib
import io
import time
from collections.abc import Callable
from typing import Any

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PreservationPolicy,
)

from rn_jax.errors import InputError


@dataclasses.dataclass
class _Best(PreservationPolicy):
    """Keeps the checkpoint of one step, which is set from outside."""

    step: int | None = None

    def should_preserve(self, checkpoints, *, context):
        return [info.step == self.step for info in checkpoints]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: where they lie, a local path or one of a bucket (gs://...).
        report: takes a sentence that the user should read.
        read_only: nothing is made, removed or saved there; another process may save.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        report: Callable[[str], None] = print,
        read_only: bool = False,
    ):
        self._report = report
        self.directory = epath.Path(directory).absolute()
        self._best = _Best()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(2), self._best]),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, state: Any, record: dict[str, Any], *, best: bool = False) -> None:
        """Starts saving; a checkpoint of this step that is there already stays.

        Args:
            state: a pytree with an attribute `step`.
            record: plain values that resuming needs, kept as JSON.
            best: it is the best so far, and kept until a better one comes.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if best:
            self._best.step = step
        tree = jax.device_get(flax.serialization.to_state_dict(state))
        ours = {"digest": digest(tree), "best_step": self._best.step}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(tree),
                record=ocp.args.JsonSave({"ours": ours, "caller": record}),
            ),
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that is whole; None if there is none at all.

        A damaged one is said and moved to a folder `damaged` beside the others, and the
        one before it is taken.

        Args:
            like: a state of the same structure and shapes.

        Returns:
            The state and the record, as they were saved.

        Raises:
            InputError: there are checkpoints, but none of them is whole.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                state, ours, record = self._read(step, like)
            except Exception:  # whatever a damaged file makes a reader raise
                self._report(
                    f"The checkpoint of step {step} is damaged; trying the one before."
                )
                continue
            self._set_aside([s for s in steps if s > step])
            self._best.step = ours["best_step"]
            return state, record
        if steps:
            raise InputError(
                f"All checkpoints in {self.directory} are damaged; remove the folder "
                "to start again from step 0."
            )
        return None

    def best_step(self) -> int | None:
        """Step saved last as the best, after `restore` also that of the run before."""
        return self._best.step

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def read(self, step: int, like: Any | None = None) -> Any:
        """The state saved at `step`, as `restore` gives it; a nested dict if no `like`.

        Raises:
            Exception: of whatever kind, the checkpoint is damaged.
        """
        return self._read(step, like)[0]

    def wait(self) -> None:
        """Returns when everything begun is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _set_aside(self, steps):
        for step in steps:
            place = self.directory.parent / "damaged"
            place.mkdir(parents=True, exist_ok=True)
            tries = sum(1 for _ in place.glob(f"{step}-*"))
            (self.directory / str(step)).rename(place / f"{step}-{tries + 1}")
        self._manager.reload()

    def _read(self, step, like):
        target = None
        if like is not None:
            target = flax.serialization.to_state_dict(like)
            target = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), target)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), record=ocp.args.JsonRestore()
        )
        # After a file that cannot be read, Orbax's remaining reads print tracebacks.
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                saved = self._manager.restore(step, args=items)
            except Exception:
                time.sleep(1)  # by then those reads have ended
                raise
        ours, record = saved.record["ours"], saved.record["caller"]
        if ours["digest"] != digest(saved.state):
            raise OSError("its contents do not match their checksum")
        state = saved.state
        if like is not None:
            state = flax.serialization.from_state_dict(like, state)
        return state, ours, record


def digest(tree: Any) -> str:
    """SHA-256 over every leaf in order: zero-filled files can decompress to zeros."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
