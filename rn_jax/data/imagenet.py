# SPDX-License-Identifier: Apache-2.0
"""ImageNet from its JPEGs: batches decoded and cropped by worker processes.

The data set is TFDS's `imagenet2012` in array_record files. The examples of a batch and
the draws for each are functions of the seed and the step alone, so a run can start at
any step and saves nothing but the step. Grain distributes the steps over its worker
processes and returns the batches in order; one worker makes a whole batch.

Grain and OpenCV belong to the extra `imagenet` and are imported when the data set is
opened. A worker imports this package, and so JAX, but runs no function of JAX: it never
initialises a backend, and so never claims an accelerator's memory.
"""

import contextlib
import dataclasses
import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rn_jax import parallel
from rn_jax.data import tfds
from rn_jax.data.batches import Batch, Feed, steps_per_epoch, train_indices
from rn_jax.data.catalog import IMAGENET
from rn_jax.data.tfds import MAX_SKIPPED, DamagedRecordError
from rn_jax.data.transforms import decode_jpeg
from rn_jax.errors import InputError, first_line, must_be, package_needed, quiet_absl

SPEC = IMAGENET
TrainView = Callable[[np.random.Generator, np.ndarray], np.ndarray]
EvalView = Callable[[np.ndarray], np.ndarray | list[np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The encoded examples of a split, or a selection of them.

    Attributes:
        where: the split and its folder, for messages.
        source: all records of the split, as bytes by index.
        chosen: int[M], the indices of the selection; None for all.
        skip_damaged: whether to replace a record that cannot be read by the next one.
    """

    where: str
    source: Sequence[bytes]
    chosen: np.ndarray | None = None
    skip_damaged: bool = False

    def __len__(self) -> int:
        return len(self.source) if self.chosen is None else len(self.chosen)

    def take(self, indices: np.ndarray) -> "Records":
        """Return the examples at `indices`, int[M], in that order."""
        if self.chosen is not None:
            indices = self.chosen[indices]
        return dataclasses.replace(self, chosen=indices)

    def decode(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, int, bool]]:
        """Yield (uint8[H, W, 3], label, True) of the records at `indices`, in order.

        For a damaged record that is skipped, yield the image and label of the next
        readable one (the first follows the last) and False.

        Raises:
            InputError: a record is damaged, or with `skip_damaged` more than
                `MAX_SKIPPED` in a row.
        """
        wanted = indices if self.chosen is None else self.chosen[indices]
        records = tfds.fetch(self.source, wanted.tolist())
        for index, record in zip(indices, records, strict=True):
            yield self._decode_or_next(index, record)

    def _decode_or_next(self, first, record):
        """Decode `record`, the one at index `first`; read it first if it is None."""
        for skipped in range(min(1 + MAX_SKIPPED, len(self))):
            index = (first + skipped) % len(self)
            try:
                image, label = self._decode_one(index, None if skipped else record)
            except DamagedRecordError as error:
                if not self.skip_damaged:
                    raise InputError(
                        f"{error}: restore its files, prepare them again, or set "
                        "damaged_records=skip."
                    ) from error
                print_once(f"{error} and skipped.")
            else:
                return image, label, skipped == 0
        raise InputError(
            f"None of {skipped + 1} records in a row of the {self.where} can be read: "
            "restore its files or prepare them again."
        )

    def _decode_one(self, index, record):
        index = int(index if self.chosen is None else self.chosen[index])
        try:
            record = self.source[index] if record is None else record
            encoded, label = tfds.parse_record(record)
            return decode_jpeg(encoded), label
        except MemoryError:
            raise
        except Exception as error:  # of many kinds, see `tfds.damage_in_a_sentence`
            raise DamagedRecordError(
                f"Record {index} of the {self.where} is damaged ({first_line(error)})"
            ) from error


@functools.cache
def print_once(sentence: str) -> None:
    """Print a sentence to standard error, unless it was printed before."""
    with contextlib.suppress(OSError):  # a worker continues without a terminal
        print(sentence, file=sys.stderr, flush=True)


def open_records(
    data_dir: str | os.PathLike | None = None, *, damaged_records: str = "stop"
) -> dict[str, Records]:
    """Open ImageNet without reading any record.

    Args:
        data_dir: as in `rn_jax.data.load`.
        damaged_records: "stop" to raise an error at a damaged record; "skip" for
            batches without it, see `train_batch` and `eval_batch`, and one message per
            process on stderr.

    Returns:
        "train", 1,281,167 examples, and "test", the validation split of 50,000 examples
        on which the papers report errors.

    Raises:
        InputError: a package of the extra `imagenet` is missing; the data set is not
            prepared, has a format without random access, or is damaged.
    """
    skip = tfds.skips_damaged(damaged_records)
    for package, name in (("grain", "Grain"), ("cv2", "OpenCV")):
        with package_needed(f"{SPEC.name} is read with {name}", '"rn_jax[imagenet]"'):
            importlib.import_module(package)
    data_dir = tfds.resolve_data_dir(data_dir)
    builder = tfds.open_builder(SPEC, data_dir)
    folder = os.fspath(builder.data_path)
    with quiet_absl(), tfds.damage_in_a_sentence(SPEC, data_dir, folder):
        present = {path.name for path in builder.data_path.iterdir()}
        train, test = (
            _open_split(builder, split, present, skip_damaged=skip)
            for split in (*SPEC.train_splits, SPEC.test_split)
        )
    return {"train": train, "test": test}


def _open_split(
    builder, split: str, present: set[str], *, skip_damaged: bool
) -> Records:
    """Return a split after checking that `present` has all of its files."""
    # TFDS's wrapper would send its whole builder to the workers.
    source = tfds.data_source(builder, split).data_source
    # A file is opened when its first record is read: without this check, a missing one
    # would be found only after hours.
    missing = sorted(set(builder.info.splits[split].filenames) - present)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} files are missing, such as {missing[0]}"
        )
    folder = os.fspath(builder.data_path)
    where = f"split {split} of {SPEC.name} in {folder}"
    return Records(where, source, skip_damaged=skip_damaged)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Feed):
    """A feed of ImageNet's `Records`.

    Closing a generator of batches, its end or an error in it ends its workers.

    Attributes:
        train_view: (generator, uint8[H, W, 3]) -> uint8[h, w, 3], of one shape.
        eval_view: uint8[H, W, 3] -> uint8[h, w, 3], or uint8[V, h, w, 3] for several
            views, of one shape; or a list of views of different shapes, for which
            `batch_size` must be 1 per host.
        num_workers: processes that make batches, each up to four ahead, which wait in
            shared memory (/dev/shm, which a container may limit); 0 to make each batch
            in this process when it is asked for.
    """

    train_view: TrainView
    eval_view: EvalView
    num_workers: int

    def __post_init__(self):
        if self.num_workers < 0:
            raise must_be("num_workers", "0 or more", self.num_workers)

    def train_batches(self, first_step: int, last_step: int) -> Generator[Batch]:
        """Yield `train_batch` of each step, as `Feed` says.

        Raises:
            InputError: see `Feed`; later also a damaged record that is not skipped,
                views of different shapes, or a worker that was killed, for example by
                the kernel when memory ran out.
        """
        steps_per_epoch(self.num_train, self.batch_size)
        make = functools.partial(
            train_batch,
            self.parts["train"],
            batch_size=self.batch_size,
            seed=self.seed,
            view=self.train_view,
            rows=self.rows(self.batch_size),
        )
        return _in_workers(make, range(first_step, last_step), self.num_workers)

    def eval_batches(
        self, part: str, *, batch_size: int, limit: int | None = None
    ) -> Generator[Batch]:
        """Yield `eval_batch` of each batch, as `Feed` says.

        Skipped damaged records are masked out.

        Args:
            part: a name in `parts`.
            batch_size: examples per batch, over all hosts.
            limit: number of examples, from the first; None for all.

        Raises:
            InputError: see `train_batches`.
        """
        records = self.parts[part]
        count = len(records) if limit is None else min(limit, len(records))
        make = functools.partial(
            eval_batch,
            records,
            count=count,
            batch_size=batch_size,
            view=self.eval_view,
            rows=self.rows(batch_size),
        )
        return _in_workers(make, range(-(-count // batch_size)), self.num_workers)


def mean_image(
    records: Records, *, examples: int, view: EvalView, num_workers: int
) -> np.ndarray:
    """Return the mean of the crops of a sample of images, float32[h, w, 3] of 0..255.

    The sample is a function of the number of records alone, and its sum is an integer:
    every host and every run computes the same image, bit for bit.

    Args:
        records: the training records.
        examples: size of the sample, which is drawn without replacement; at most all.
        view: uint8[H, W, 3] -> uint8[h, w, 3], of one shape.
        num_workers: see `Source`.

    Raises:
        InputError: a record is damaged and not skipped, or none can be read.
    """
    order = np.random.default_rng(0).permutation(len(records))
    sample = records.take(np.sort(order[:examples]))
    size = len(sample)
    make = functools.partial(eval_batch, sample, count=size, batch_size=64, view=view)
    total: Any = 0
    count = 0
    for batch in _in_workers(make, range(-(-size // 64)), num_workers):
        total = total + batch["image"].sum(axis=0, dtype=np.int64)  # masked ones are 0
        count += int(batch["mask"].sum())
    if count == 0:
        raise InputError(f"No record of the {records.where} can be read.")
    return np.asarray(total / count, np.float32)


def train_batch(
    records: Records,
    step: int,
    *,
    batch_size: int,
    seed: int,
    view: TrainView,
    rows: slice = slice(None),
) -> Batch:
    """Return rows of the batch of a training step; the mask is True.

    The examples are those of `rn_jax.data.train_batch`. The generator given to `view`
    depends on (seed, epoch, index of the example) alone, even when another image
    replaces a damaged one: the next readable one, in the order of `records`.

    Args:
        records: the training records.
        step: 0, 1, ...
        batch_size, rows: see `rn_jax.data.train_batch`.
        seed: seed of the order of examples and of the draws of `view`.
        view: see `train_view` of `Source`.
    """
    epoch, indices = train_indices(len(records), step, batch_size=batch_size, seed=seed)
    indices = indices[rows]
    images, labels = [], []
    decoded = records.decode(indices)
    for index, (image, label, _) in zip(indices, decoded, strict=True):
        rng = np.random.default_rng(np.random.SeedSequence([seed, epoch, int(index)]))
        images.append(view(rng, image))  # (H, W, 3) -> (h, w, 3)
        labels.append(label)
    return _stack(images, labels, np.ones(len(indices), np.bool_))


def eval_batch(
    records: Records,
    number: int,
    *,
    count: int,
    batch_size: int,
    view: EvalView,
    rows: slice = slice(None),
) -> Batch:
    """Return rows of batch `number` of the first `count` examples.

    Rows beyond `count`, and those of skipped damaged records, are zeros with a mask of
    False.

    Args:
        records: the records of a part.
        number: 0, 1, ...
        count: 1 or more.
        batch_size, rows: see `rn_jax.data.eval_batches`.
        view: see `eval_view` of `Source`.
    """
    wanted = (number * batch_size + np.arange(batch_size))[rows]
    real = wanted[wanted < count]
    # A batch without real rows still needs one image, for the shape.
    indices = real if len(real) else np.array([count - 1])
    images, labels, mask = [], [], np.zeros(len(wanted), np.bool_)
    for row, (image, label, intact) in enumerate(records.decode(indices)):
        images.append(view(image))  # (H, W, 3) -> (h, w, 3), (V, h, w, 3) or a list
        labels.append(label)
        mask[row] = intact and row < len(real)
    return _stack(images, labels, mask)


def _stack(images: list, labels: list[int], mask: np.ndarray) -> Batch:
    """Return a batch from its first rows and the mask of all; masked rows are zeros."""
    several = isinstance(images[0], list)
    views = zip(*(images if several else ([image] for image in images)), strict=True)
    stacked = [_stack_view(same, len(mask)) for same in views]  # (B, h, w, 3) of each
    label = np.zeros(len(mask), np.int32)
    label[: len(labels)] = labels
    for array in (*stacked, label):
        array[~mask] = 0
    return {"image": stacked if several else stacked[0], "label": label, "mask": mask}


def _stack_view(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise InputError(
            f"The images of a batch have different shapes, {min(shapes)} and "
            f"{max(shapes)}: crop them to one shape, or use batches of 1 per host."
        )
    batch = np.zeros((size, *images[0].shape), np.uint8)
    np.stack(images, out=batch[: len(images)])
    return batch


def _in_workers(
    make: Callable[[int], Batch], numbers: range, num_workers: int
) -> Generator[Batch]:
    """Yield make(number) for each of `numbers`, in order, from worker processes."""
    import grain
    from absl import flags

    if not numbers:
        return
    # Grain reads flags of its own, which nobody parses outside of absl's programs.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    iterator = iter(
        grain.MapDataset.range(numbers.start, numbers.stop)
        .map(make)
        # A worker makes one batch at a time: threads would share its interpreter lock.
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(
                num_workers=min(num_workers, len(numbers)), per_worker_buffer_size=1
            ),
            worker_init_fn=_start_worker,
        )
    )
    try:
        for batch in iterator:
            # Copies, so that what is in shared memory is freed at once.
            yield jax.tree.map(np.array, batch)
    except RuntimeError as error:
        raise InputError(
            f"A process that decodes images was killed ({first_line(error)}), perhaps "
            "because memory ran out: use fewer workers or smaller batches."
        ) from error
    finally:
        iterator.close()


def _start_worker(index: int, count: int) -> None:
    """Make a worker end with the process that started it, and not on its own."""
    import cv2

    cv2.setNumThreads(0)  # one worker per core is enough
    # Ctrl-C reaches every process of the terminal, and SIGTERM often all of a job; the
    # main process saves first and then ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A parent that was killed could not end its workers.
    parallel.when_parent_ends(functools.partial(os._exit, 1))
