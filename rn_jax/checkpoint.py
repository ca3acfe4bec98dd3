# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: the last two and the best, through Orbax.

A checkpoint is a plain nested dict of arrays and a small record in JSON, so it can be
read without this project's classes. Saving is asynchronous; a checkpoint that was not
written to its end does not count. In a run of several processes all of them call every
function here; the first one writes, since the arrays are the same in all.
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
from rn_jax.errors import InputError

# Of what is saved and how; another number is refused.
FORMAT = 1


@dataclasses.dataclass
class _Best(PreservationPolicy):
    """Keeps the checkpoint of one step, which is set from outside."""

    step: int | None = None

    def should_preserve(self, checkpoints, *, context):
        return [info.step == self.step for info in checkpoints]


class OtherNetworkError(InputError):
    """A checkpoint that is whole, but of something else."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: where they lie, a local path or one of a bucket (gs://...).
        report: takes a sentence that the user should read.
        read_only: nothing is made, removed or saved there; another process may save.

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
        # The same folder, where its path has characters that Orbax would interpret.
        self._literal = epath.Path(
            self._open.enter_context(
                filesystem.literal(str(self.directory), create=not read_only)
            )
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(2), self._best]),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self._literal, options=options)

    def save(self, state: Any, record: dict[str, Any], *, best: bool = False) -> None:
        """Starts saving; a checkpoint of this step that is there already stays.

        Args:
            state: a pytree with an attribute `step`.
            record: plain values that resuming needs, kept as JSON.
            best: it is the best so far, and kept until a better one comes.

        Raises:
            InputError: it, or the one before, cannot be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if best:
            self._best.step = step
        tree = jax.device_get(flax.serialization.to_state_dict(state))
        ours = {
            "format": FORMAT,
            "layout": layout(tree),
            "digest": digest(tree),
            "best_step": self._best.step,
        }
        with self._writing():
            if self._literal != self.directory:  # a link in /tmp, where old files go
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
        except Exception as error:  # of the disk, by Orbax, TensorStore or the system
            last = max(self._manager.all_steps(read=True), default=None)
            kept = "there is none before it" if last is None else f"step {last} is kept"
            reason = str(error).replace(str(self._literal), str(self.directory))
            reason = " ".join(reason.split())
            if len(reason) > 200:  # TensorStore's end with the system's words
                reason = f"{reason[:80]} ... {reason[-80:]}"
            raise InputError(
                f"A checkpoint cannot be written to {self.directory} ({reason}); "
                f"{kept}. Make room there, and the same command goes on."
            ) from error

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that is whole; None if there is none at all.

        A damaged one is said and moved to a folder `damaged` beside the others, and the
        one before it is taken.

        Args:
            like: a state of the same structure and shapes.

        Returns:
            The state and the record, as they were saved.

        Raises:
            InputError: there are checkpoints, but none of them is whole; or one of
                another network, or by another version of this project.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            found: tuple | None = None
            try:
                found = self._read(step, like)
            except (OtherNetworkError, MemoryError):
                raise
            except Exception:  # whatever a damaged file makes a reader raise
                pass
            whole = parallel.all_true(found is not None)
            if found is None or not whole:
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

    def best_step(self) -> int | None:
        """Step saved last as the best, after `restore` also that of the run before."""
        return self._best.step

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def read(
        self, step: int, like: Any | None = None, *, most: int | None = None
    ) -> Any:
        """The state saved at `step`, as `restore` gives it; a nested dict if no `like`.

        Args:
            step: one that was saved.
            like: a state of the same structure and shapes.
            most: numbers that it may claim to hold; those of `like` if there is one.

        Raises:
            InputError: it claims more, or is of another network or format.
            Exception: of whatever other kind, the checkpoint is damaged.
        """
        return self._read(step, like, most)[0]

    def wait(self) -> None:
        """Returns when everything begun is on disk.

        Raises:
            InputError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager's threads."""
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
        # After a file that cannot be read, Orbax's remaining reads print tracebacks.
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
                time.sleep(1)  # by then those reads have ended
                raise
        if record["ours"]["digest"] != digest(state):
            raise OSError("its contents do not match their checksum")
        if like is not None:
            state = flax.serialization.from_state_dict(like, state)
        return state, record["ours"], record["caller"]

    def _restore(self, step, **items):
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check_format(self, step, record):
        there = record["ours"].get("format", "older than formats are numbered")
        if there != FORMAT:
            raise OtherNetworkError(
                f"{self._where(step)} was written by another version of rn_jax: its "
                f"format is {there}, and this one reads {FORMAT}."
            )

    def _where(self, step):
        return f"The checkpoint of step {step} in {self.directory}"

    def _target(self, step, like, record):
        """Arrays of the shapes that are looked for, which are those that are there."""
        target = flax.serialization.to_state_dict(like)
        here, there = layout(target), record["ours"]["layout"]
        differ = [n for n in sorted({*here, *there}) if here.get(n) != there.get(n)]
        if differ:
            name = differ[0]
            more = "" if len(differ) == 1 else f", and {len(differ) - 1} more differ"
            raise OtherNetworkError(
                f"{self._where(step)} is of another network: {name} is "
                f"{there.get(name, 'absent')} there and {here.get(name, 'absent')} "
                f"here{more}."
            )
        return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), target)

    def _refuse_larger(self, step, most):
        """Raises an InputError by the metadata alone: reading would take the memory."""
        handler = ocp.PyTreeCheckpointHandler()
        metadata = handler.metadata(self._literal / str(step) / "state")
        claimed = sum(
            max(math.prod(array.shape), math.prod(array.storage.chunk_shape))
            for array in jax.tree.leaves(metadata.tree)
        )
        if claimed > most:
            raise InputError(
                f"{self._where(step)} claims {claimed:,} numbers; at most {most:,} are "
                "taken."
            )


def layout(tree: Any) -> dict[str, str]:
    """Type and shape of every leaf by its path, as "float32[3, 3, 16, 16]"."""
    return {
        "/".join(str(part.key) for part in path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def digest(tree: Any) -> str:
    """SHA-256 over every leaf in order: zero-filled files can decompress to zeros."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
