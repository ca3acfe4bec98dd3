# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: the last two and the best, through Orbax.

A checkpoint is a plain nested dict of arrays and a small JSON record, so it can be read
without this project's classes. Saving is asynchronous; an incomplete checkpoint does
not count. In a run of several processes, all of them call every function here; the
first one writes, since the arrays are the same in all.
"""

import contextlib
import dataclasses
import hashlib
import io
import math
import os
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

from rn_jax import filesystem, parallel
from rn_jax.errors import InputError, quiet_absl

# The version of the format; checkpoints of others are refused.
FORMAT = 1
# Parts of a state that are not saved if they are empty: older checkpoints lack them.
_IF_ANY = ("ema",)


@dataclasses.dataclass
class _Best(PreservationPolicy):
    """Preserves the checkpoint of one step, which is set from outside."""

    step: int | None = None

    def should_preserve(self, checkpoints, *, context):
        return [info.step == self.step for info in checkpoints]


class OtherNetworkError(InputError):
    """An intact checkpoint belongs to another network, or has another format."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: their folder, a local path or one in a bucket (gs://...).
        report: called with a sentence that the user should read.
        read_only: make, remove and save nothing; another process may save.

    Raises:
        InputError: no folder can have this path.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        report: Callable[[str], None] = print,
        read_only: bool = False,
    ):
        self._report = report
        self.directory = epath.Path(filesystem.absolute(directory))
        self._best = _Best()
        self._open = contextlib.ExitStack()
        # A link to the folder if its path has characters that Orbax would interpret.
        self._literal = epath.Path(
            self._open.enter_context(
                filesystem.literal(str(self.directory), create=not read_only)
            )
        )
        with quiet_absl():  # Orbax warns that a manager is read-only
            options = ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(2), self._best]),
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            )
            self._manager = ocp.CheckpointManager(self._literal, options=options)

    def save(self, state: Any, record: dict[str, Any], *, best: bool = False) -> None:
        """Start saving, unless there is already a checkpoint of this step.

        Args:
            state: a pytree with an attribute `step`.
            record: JSON-compatible values that resuming needs.
            best: whether it is the best so far, which is kept until a better one.

        Raises:
            InputError: it, or the one before, cannot be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if best:
            self._best.step = step
        tree = jax.device_get(_to_tree(state))
        ours = {
            "format": FORMAT,
            "layout": layout(tree),
            "digest": digest(tree),
            "best_step": self._best.step,
        }
        with self._writing():
            if self._literal != self.directory:  # keeps a link in /tmp from being old
                os.utime(self._literal, follow_symlinks=False)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree),
                    record=ocp.args.JsonSave({"ours": ours, "caller": record}),
                ),
            )

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except jax.errors.JaxRuntimeError:  # another process has ended
            raise
        except Exception as error:  # of Orbax, TensorStore or the system
            last = max(self._manager.all_steps(read=True), default=None)
            kept = "there is no earlier one" if last is None else f"step {last} is kept"
            reason = str(error).replace(str(self._literal), str(self.directory))
            reason = " ".join(reason.split())
            if len(reason) > 200:  # TensorStore's messages end with the system's
                reason = f"{reason[:80]} ... {reason[-80:]}"
            raise InputError(
                f"A checkpoint cannot be written to {self.directory} ({reason}); "
                f"{kept}. Make room there, and continue with the same command."
            ) from error

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restore the newest intact checkpoint; return None if there are none at all.

        Damaged checkpoints are reported and moved aside, to a folder `damaged`.

        Args:
            like: a state of the same structure and shapes.

        Returns:
            The state and the record, as they were saved.

        Raises:
            InputError: all checkpoints are damaged, or one is of another network or
                another version of this project.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            found: tuple | None = None
            try:
                found = self._read(step, like)
            except (OtherNetworkError, MemoryError):
                raise
            except Exception:  # a damaged file raises errors of any kind
                pass
            intact = parallel.all_true(found is not None)
            if found is None or not intact:
                self._report(
                    f"The checkpoint of step {step} is damaged; trying the one before."
                )
                continue
            state, ours, record = found
            self._set_aside([s for s in steps if s > step])
            self._best.step = ours["best_step"]
            return state, record
        if steps:
            raise InputError(
                f"All checkpoints in {self.directory} are damaged; remove the folder "
                "to start again from step 0."
            )
        return None

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Return the step of the best checkpoint, known after `save` or `restore`."""
        return self._best.step

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def read(
        self, step: int, like: Any | None = None, *, most: int | None = None
    ) -> Any:
        """Return the state saved at `step`.

        Args:
            step: the step of a checkpoint.
            like: a state of the same structure and shapes; None for a nested dict.
            most: the largest number of elements that the checkpoint may claim; with
                `like` it is that of `like`.

        Raises:
            InputError: it claims more, or is of another network or format.
            Exception: the checkpoint is damaged, for any other kind of exception.
        """
        return self._read(step, like, most)[0]

    def wait(self) -> None:
        """Wait until all started saves are on disk.

        Raises:
            InputError: one cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for saves, and release the manager's threads.

        Raises:
            InputError: a checkpoint cannot be written.
        """
        try:
            with self._writing():
                self._manager.wait_until_finished()
                self._manager.close()
        finally:
            self._open.close()

    def _set_aside(self, steps):
        parallel.wait_for_all()
        for step in steps if parallel.is_first_process() else ():
            place = self.directory.parent / "damaged"
            place.mkdir(parents=True, exist_ok=True)
            tries = sum(p.name.startswith(f"{step}-") for p in place.iterdir())
            (self.directory / str(step)).rename(place / f"{step}-{tries + 1}")
        parallel.wait_for_all()
        self._manager.reload()

    def _read(self, step, like, most=None):
        # After a damaged file, Orbax's other reads print tracebacks.
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                record = self._restore(step, record=ocp.args.JsonRestore()).record
                self._check_format(step, record)
                target = None
                if like is not None:
                    target = self._target(step, like, record)
                    most = sum(leaf.size for leaf in jax.tree.leaves(target))
                if most is not None:
                    self._refuse_larger(step, most)
                state = self._restore(
                    step, state=ocp.args.StandardRestore(target)
                ).state
            except InputError:
                raise
            except Exception:
                time.sleep(1)  # until those reads have ended
                raise
        if record["ours"]["digest"] != digest(state):
            raise OSError("its contents do not match their checksum")
        if like is not None:
            whole = flax.serialization.to_state_dict(like)
            state |= {name: whole[name] for name in whole.keys() - state.keys()}
            state = flax.serialization.from_state_dict(like, state)
        return state, record["ours"], record["caller"]

    def _restore(self, step, **items):
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check_format(self, step, record):
        saved = record["ours"].get("format", "older than format numbers")
        if saved != FORMAT:
            raise OtherNetworkError(
                f"{self._where(step)} was written by another version of rn_jax: its "
                f"format is {saved}, and this one reads {FORMAT}."
            )

    def _where(self, step):
        return f"The checkpoint of step {step} in {self.directory}"

    def _target(self, step, like, record):
        """Return zeros of the shapes of `like`, which the checkpoint must have too."""
        target = _to_tree(like)
        here, there = layout(target), record["ours"]["layout"]
        differ = [n for n in sorted({*here, *there}) if here.get(n) != there.get(n)]
        if differ:
            name = differ[0]
            more = "" if len(differ) == 1 else f", and {len(differ) - 1} more differ"
            raise OtherNetworkError(
                f"{self._where(step)} belongs to another network: {name} is "
                f"{there.get(name, 'absent')} there and {here.get(name, 'absent')} "
                f"here{more}."
            )
        return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), target)

    def _refuse_larger(self, step, most):
        """Raise an InputError from the metadata alone, before reading needs memory."""
        handler = ocp.PyTreeCheckpointHandler()
        metadata = handler.metadata(self._literal / str(step) / "state")
        claimed = sum(
            max(math.prod(array.shape), math.prod(array.storage.chunk_shape))
            for array in jax.tree.leaves(metadata.tree)
        )
        if claimed > most:
            raise InputError(
                f"{self._where(step)} claims {claimed:,} numbers; at most {most:,} are "
                "allowed."
            )


def _to_tree(state):
    """Return a state as the nested dict that is saved."""
    tree = flax.serialization.to_state_dict(state)
    return {name: part for name, part in tree.items() if name not in _IF_ANY or part}


def layout(tree: Any) -> dict[str, str]:
    """Return dtype and shape of each leaf by path, such as "float32[3, 3, 16, 16]"."""
    return {
        "/".join(str(part.key) for part in path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def digest(tree: Any) -> str:
    """Return the SHA-256 of all leaves: zero-filled files can decompress to zeros."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
