# SPDX-License-Identifier: Apache-2.0
"""The files of a run: config.json, metrics.jsonl, timing.jsonl, summary.json, events.

A run that diverged has diverged.json instead of summary.json, and one that normalises
ImageNet by its mean image has mean_image.safetensors.

metrics.jsonl depends only on the config and on the kind and number of the devices;
clock and memory readings go to timing.jsonl. When a run is resumed, both are cut back
to the restored step, so that no line is repeated or missing.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Set
from typing import Any

import flax.serialization
import jax
import numpy as np
import safetensors.numpy
from etils import epath

from configs.default import Config
from experiments.config import BEFORE, as_json, read_fields
from experiments.training.lock import Lock
from rn_jax import filesystem
from rn_jax.checkpoint import Checkpoints
from rn_jax.errors import InputError
from rn_jax.filesystem import read_json, replace_file

# Fields that may differ when a run is resumed: they do not change what is computed,
# except for the rounding of sums over another number of devices.
FREE = {
    *("compilation_cache", "cuda_graphs", "num_devices", "num_workers", "parallelism"),
    *("data_dir", "data_on_device", "eval_batch_size"),
    *("paper", "published_error_percent", "expected_to_fail"),
}

_MEAN_IMAGE = "mean_image.safetensors"


class Workdir:
    """The folder of one run, local or in a bucket (gs://...).

    Nothing is written before `open`.

    Args:
        path: the folder.
        config: the run's.

    Attributes:
        config: the same, as read back from config.json. A field that the run is too old
            to have has the value that describes what older versions did.

    Raises:
        InputError: the folder holds a run of another config, and is left unchanged; or
            no folder can have this path.
    """

    def __init__(self, path: epath.PathLike, config: Config):
        filesystem.check(path)
        self.path = epath.Path(path)
        self.config = config
        self._unwritten: Set[str] = set()
        self._check_config()
        self._writes = False
        self._lock = Lock(self.path)
        self._events: Any = None

    def open(self, *, writes: bool = True) -> None:
        """Make and lock the folder, and write config.json; `close` releases the lock.

        `writes` is False in all processes but the first, which write nothing.

        Raises:
            InputError: another run has the folder, or it cannot be written to.
        """
        self._writes = writes
        if not writes:
            return
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._check_config()  # another run may have begun and ended meanwhile
            fields = as_json(self.config).items()
            written = {name: v for name, v in fields if name not in self._unwritten}
        self._write("config.json", written)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn errors of writing into the folder into a sentence.

        Raises:
            InputError: the folder cannot be written to, as when the disk is full.
        """
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written to ({error}). Checkpoints are kept: "
                "make room, and the same command resumes the run."
            ) from error

    @property
    def checkpoints(self) -> epath.Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> epath.Path:
        """The folder of the figures."""
        return self.path / "figures"

    def summary(self) -> dict[str, Any] | None:
        """Return summary.json; None before the run has ended."""
        return self._read("summary.json")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        self._write("summary.json", summary)

    def mean_image(self) -> np.ndarray | None:
        """Return the mean image of ImageNet that is kept, f32[size, size, 3], or None.

        Raises:
            InputError: its file is damaged.
        """
        file = self.path / _MEAN_IMAGE
        if not file.exists():
            return None
        shape = (self.config.image_size, self.config.image_size, 3)
        try:
            image = safetensors.numpy.load(file.read_bytes())["mean"]
        except (safetensors.SafetensorError, KeyError):
            image = np.zeros(())
        if (image.shape, image.dtype) != (shape, np.float32) or not (
            np.isfinite(image).all()
        ):
            raise InputError(
                f"{file} is damaged: restore it, or remove it to have the mean image "
                "computed again."
            )
        return image

    def keep_mean_image(self, image: np.ndarray) -> None:
        """Write the mean image, unless it is kept already."""
        if self._writes and not (self.path / _MEAN_IMAGE).exists():
            content = safetensors.numpy.save({"mean": np.ascontiguousarray(image)})
            replace_file(self.path / _MEAN_IMAGE, content)

    def diverged(self) -> dict[str, Any] | None:
        """Return diverged.json: where and why the run diverged; None if it did not."""
        return self._read("diverged.json")

    def note_divergence(self, facts: Mapping[str, Any]) -> None:
        """Write diverged.json, which stays until the run is started again."""
        self._write("diverged.json", facts)

    def resume_at(self, step: int) -> None:
        """Cut the logs back to `step`, and open the events there."""
        if not self._writes:
            return
        with self.writing():
            (self.path / "diverged.json").unlink(missing_ok=True)
            for name in ("metrics.jsonl", "timing.jsonl"):
                kept = [line for line in self.lines(name) if line["step"] <= step]
                text = "".join(json.dumps(line) + "\n" for line in kept)
                replace_file(self.path / name, text)
            from experiments.training.events import Events  # it may import PyTorch

            (self.path / "events").mkdir(exist_ok=True)
            self._events = Events(self.path / "events", step + 1)

    def log(self, name: str, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl or timing.jsonl, by name, and to the events.

        The line has a "step"; its other values are numbers, strings or None.
        """
        if not self._writes:
            return
        prefix = f"{name}/{line['kind']}" if "kind" in line else name
        with self.writing():
            with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._events.log(prefix, line)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl or timing.jsonl, by the file's name."""
        return read_lines(self.path / name)

    def epochs(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl on epochs."""
        return read_epochs(self.path)

    def close(self) -> None:
        """Close the events, and release the lock."""
        events, self._events = self._events, None
        try:  # a full disk was reported when a line was written
            with contextlib.suppress(OSError):
                if events is not None:
                    events.close()
        finally:
            self._lock.release()

    def _check_config(self):
        file = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; --workdir must name a folder.")
        if not file.exists():
            if self.checkpoints.exists():
                raise InputError(
                    f"{self.path} holds checkpoints but no config.json; restore it, or "
                    "choose another folder (--workdir)."
                )
            return
        # The run continues as it began, each time that it is resumed.
        self._unwritten = BEFORE.keys() - read_json(file).keys()
        there = read_fields(file)
        begun = {name: BEFORE[name] for name in self._unwritten}
        self.config = dataclasses.replace(self.config, **begun)
        here = as_json(self.config)
        names = sorted((set(there) | set(here)) - FREE)
        differ = [n for n in names if there.get(n) != here.get(n)]
        if differ:
            shown = ", ".join(
                f"{n} {there.get(n)!r} there and {here.get(n)!r} here"
                for n in differ[:5]
            )
            raise InputError(
                f"{self.path} holds a run of another config ({shown}); choose another "
                "folder (--workdir), or use that run's config."
            )

    def _read(self, name):
        file = self.path / name
        return read_json(file) if file.exists() else None

    def _write(self, name, value):
        if self._writes:
            replace_file(self.path / name, json.dumps(value, indent=2) + "\n")


def read_lines(file: epath.Path) -> list[dict[str, Any]]:
    """Return the lines of a run's .jsonl file, up to one that is incomplete."""
    lines = []
    for text in file.read_bytes().splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        lines.append(line)
    return lines


def read_epochs(run: epath.Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl on epochs."""
    return [ln for ln in read_lines(run / "metrics.jsonl") if ln.get("kind") == "epoch"]


def read_checkpoint(
    folder: epath.Path, step: int | None = None, **limits: Any
) -> dict[str, Any]:
    """Return the state in a run's checkpoint, by default the last, as nested dicts.

    The folder is only read. `limits` are `like` or `most` of `Checkpoints.read`.

    Raises:
        InputError: the checkpoint is missing, damaged, or of another network.
    """
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        step = step or checkpoints.latest_step()
        if step is None:
            raise InputError(f"The run {folder} has no checkpoint yet.")
        if (known := checkpoints.steps()) and step not in known:
            raise InputError(
                f"The run {folder} has no checkpoint of step {step}, only of steps "
                f"{', '.join(map(str, known))}: name one of these, restore the missing "
                "one, or train the run again in another folder."
            )
        state = checkpoints.read(step, **limits)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes a reader raise
        raise InputError(
            f"The checkpoint of step {step} of the run {folder} is missing or damaged: "
            "restore it, or train the run again in another folder."
        ) from error
    finally:
        checkpoints.close()
    return flax.serialization.to_state_dict(jax.device_get(state))
