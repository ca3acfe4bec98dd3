# SPDX-License-Identifier: Apache-2.0
"""ImageNet from its JPEGs: batches decoded and cropped by worker processes.

The data set is TFDS's `imagenet2012` in array_record files. Which examples a batch
holds, and what is drawn for each, are functions of the seed and the step alone, so that
a run can be entered at any step and nothing but the step has to be saved. Grain feeds
the steps to its worker processes and brings the batches back in order; a batch is made
whole in one worker.

Grain and OpenCV are those of the extra `imagenet`, imported when a source is opened. A
worker imports this package, and so JAX, but no function that it runs is one of JAX's:
it never initialises a backend, and so never takes a share of an accelerator.
"""

import contextlib
import dataclasses
import functools
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from rn_jax.data.datasets import (
    MAX_SKIPPED,
    Batch,
    DamagedRecordError,
    DatasetSpec,
    damage_in_a_sentence,
    data_source,
    epoch_permutation,
    fetch,
    open_builder,
    parse_record,
    quiet_tfds,
    resolve_data_dir,
    rows_of_host,
    skips_damaged,
    steps_per_epoch,
)
from rn_jax.data.transforms import decode_jpeg
from rn_jax.errors import InputError, first_line

# Of the crop that networks are trained on; the photographs have many sizes.
SPEC = DatasetSpec(
    name="imagenet2012",
    image_shape=(224, 224, 3),
    num_classes=1000,
    num_train=1_281_167,
    test_split="validation",
    pad=0,
    flip=True,
    downloads=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
)

TrainTransform = Callable[[np.random.Generator, np.ndarray], np.ndarray]
EvalTransform = Callable[[np.ndarray], np.ndarray | list[np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The encoded examples of a split.

    Attributes:
        where: the split and its folder, for sentences.
        source: the split's records by index, as bytes.
        chosen: int[M], which of them these are; None for all.
        skip_damaged: whether another record stands for one that cannot be read.
    """

    where: str
    source: Sequence[bytes]
    chosen: np.ndarray | None = None
    skip_damaged: bool = False

    def __len__(self) -> int:
        return len(self.source) if self.chosen is None else len(self.chosen)

    def take(self, indices: np.ndarray) -> "Records":
        """The examples at `indices` (int[M]) alone, in that order."""
        if self.chosen is not None:
            indices = self.chosen[indices]
        return dataclasses.replace(self, chosen=indices)

    def decode(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, int, bool]]:
        """Yield (uint8[H, W, 3], label, True) of the records at `indices`, in order.

        For a damaged one that is skipped it is the image and label of the next one
        that can be read, around the end if need be, and False.

        Raises:
            InputError: a record is damaged, or with `skip_damaged` more than
                `MAX_SKIPPED` in a row.
        """
        sought = indices if self.chosen is None else self.chosen[indices]
        records = fetch(self.source, sought.tolist())
        for place, record in zip(indices, records, strict=True):
            yield self._decode_or_next(place, record)

    def _decode_or_next(self, first, record):
        """Of the record at place `first` of these, which is read if it is None."""
        for skipped in range(min(1 + MAX_SKIPPED, len(self))):
            place = (first + skipped) % len(self)
            try:
                image, label = self._decode_one(place, None if skipped else record)
            except DamagedRecordError as error:
                if not self.skip_damaged:
                    raise InputError(
                        f"{error}: restore its files, prepare them again, or set "
                        "damaged_records=skip."
                    ) from error
                _say_once(f"{error} and skipped.")
            else:
                return image, label, skipped == 0
        raise InputError(
            f"None of {skipped + 1} records in a row of the {self.where} can be read: "
            "restore its files or prepare them again."
        )

    def _decode_one(self, place, record):
        """The image and label of a record, which is read if it is None."""
        index = int(place if self.chosen is None else self.chosen[place])
        try:
            record = self.source[index] if record is None else record
            encoded, label = parse_record(record)
            return decode_jpeg(encoded), label
        except MemoryError:
            raise
        except Exception as error:  # as many kinds as in `damage_in_a_sentence`
            raise DamagedRecordError(
                f"Record {index} of the {self.where} is damaged ({first_line(error)})"
            ) from error


@functools.cache
def _say_once(sentence):
    with contextlib.suppress(OSError):  # of a worker, which works on unheard
        print(sentence, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """ImageNet's two parts, of which batches are made.

    Attributes:
        train: 1,281,167 examples.
        test: the validation split, 50,000 examples, on which the papers report errors.
    """

    train: Records
    test: Records

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.train)

    @property
    def num_test(self) -> int:
        """Number of validation images."""
        return len(self.test)

    def train_batches(
        self,
        first_step: int,
        last_step: int,
        *,
        batch_size: int,
        seed: int,
        transform: TrainTransform,
        num_workers: int,
        host_index: int = 0,
        num_hosts: int = 1,
    ) -> Generator[Batch]:
        """Yield `train_batch` of the steps first_step .. last_step - 1.

        Args:
            first_step: 0 for the beginning of a run, or any later one.
            last_step: the step before which to stop.
            batch_size: over all hosts.
            seed: of the order of examples and of what `transform` draws.
            transform: (generator, uint8[H, W, 3]) -> uint8[h, w, 3], the shape the same
                for all.
            num_workers: processes that make batches, each up to four ahead, which wait
                in shared memory (/dev/shm, which a container may limit); 0 to make them
                in this process when they are asked for.
            host_index: of this host, in 0 .. num_hosts - 1.
            num_hosts: each gets batch_size / num_hosts rows.

        Returns:
            A generator. Its `close()`, its end or an error in it ends the workers.

        Raises:
            InputError: a batch that does not fit the examples or the hosts; later, a
                damaged record that is not skipped, images that `transform` gives
                different shapes, or a worker that was ended from outside, as by the
                kernel for want of memory.
        """
        steps_per_epoch(self.num_train, batch_size)
        make = functools.partial(
            train_batch,
            self.train,
            batch_size=batch_size,
            seed=seed,
            transform=transform,
            rows=rows_of_host(batch_size, host_index, num_hosts),
        )
        return _in_workers(make, range(first_step, last_step), num_workers)

    def eval_batches(
        self,
        *,
        batch_size: int,
        transform: EvalTransform,
        num_workers: int,
        host_index: int = 0,
        num_hosts: int = 1,
        limit: int | None = None,
    ) -> Generator[Batch]:
        """Yield the validation images once each, in order: `eval_batch` of 0, 1, ...

        Damaged ones that are skipped are masked out. Every host yields as many batches
        as the others.

        Args:
            batch_size: over all hosts.
            transform: uint8[H, W, 3] -> uint8[h, w, 3] or uint8[V, h, w, 3] of several
                views, the shape the same for all; or a list of views of several shapes,
                for which a host's part of the batch has to be 1.
            num_workers, host_index, num_hosts: as in `train_batches`.
            limit: take only so many of the first images.

        Returns:
            A generator, as that of `train_batches`.

        Raises:
            InputError: as `train_batches`.
        """
        count = self.num_test if limit is None else min(limit, self.num_test)
        make = functools.partial(
            eval_batch,
            self.test,
            count=count,
            batch_size=batch_size,
            transform=transform,
            rows=rows_of_host(batch_size, host_index, num_hosts),
        )
        return _in_workers(make, range(-(-count // batch_size)), num_workers)


def open_source(
    data_dir: str | os.PathLike | None = None, *, damaged_records: str = "stop"
) -> Source:
    """Open ImageNet, of which nothing is read yet.

    Args:
        data_dir: as in `rn_jax.data.load`.
        damaged_records: "stop" to raise at one; "skip" for batches without it, see
            `train_batch` and `eval_batch`, and a sentence on stderr, once in a process.

    Raises:
        InputError: a package of the extra `imagenet` is missing; the data set is not
            prepared, is in a format without random access, or is damaged.
    """
    skip = skips_damaged(damaged_records)
    for package in ("grain", "cv2"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"{SPEC.name} is read with Grain and OpenCV, of which {package} does "
                f'not import here ({first_line(error)}): pip install "rn_jax[imagenet]"'
            ) from error
    data_dir = resolve_data_dir(data_dir)
    builder = open_builder(SPEC, data_dir)
    folder = os.fspath(builder.data_path)
    with quiet_tfds(), damage_in_a_sentence(SPEC, data_dir, folder):
        present = {path.name for path in builder.data_path.iterdir()}
        train, test = (
            _open_split(builder, split, present, skip_damaged=skip)
            for split in (*SPEC.train_splits, SPEC.test_split)
        )
    return Source(train=train, test=test)


def mean_image(
    records: Records, *, examples: int, transform: EvalTransform, num_workers: int
) -> np.ndarray:
    """Return the mean of the crops of a sample of images, float32[h, w, 3] of 0..255.

    The sample is a function of the number of records alone, and the sum is one of
    integers: every host and every run computes the same image, to the last bit.

    Args:
        records: those that are trained on.
        examples: of the sample, which is drawn without replacement; at most all.
        transform: uint8[H, W, 3] -> uint8[h, w, 3], the shape the same for all.
        num_workers: as in `Source.train_batches`.

    Raises:
        InputError: a record is damaged and not skipped, or none can be read.
    """
    order = np.random.default_rng(0).permutation(len(records))
    sample = Source(train=records, test=records.take(np.sort(order[:examples])))
    total: Any = 0
    count = 0
    for batch in sample.eval_batches(
        batch_size=64, transform=transform, num_workers=num_workers
    ):
        total = total + batch["image"].sum(axis=0, dtype=np.int64)  # 0 if masked
        count += int(batch["mask"].sum())
    if count == 0:
        raise InputError(f"No record of the {records.where} can be read.")
    return np.asarray(total / count, np.float32)


def _open_split(
    builder, split: str, present: set[str], *, skip_damaged: bool
) -> Records:
    """Return a split whose files are all among those present."""
    # TFDS's wrapper would take its whole builder along to the workers.
    source = data_source(builder, split).data_source
    # Files are opened when their first record is read: a missing one would be found
    # only hours later.
    missing = sorted(set(builder.info.splits[split].filenames) - present)
    if missing:
        raise FileNotFoundError(f"{len(missing)} files are missing, as {missing[0]}")
    folder = os.fspath(builder.data_path)
    where = f"split {split} of {SPEC.name} in {folder}"
    return Records(where, source, skip_damaged=skip_damaged)


def train_batch(
    records: Records,
    step: int,
    *,
    batch_size: int,
    seed: int,
    transform: TrainTransform,
    rows: slice = slice(None),
) -> Batch:
    """Return the rows `rows` of the batch of training step `step`; the mask is True.

    The examples are those of `rn_jax.data.train_batch`: `epoch_permutation`, of which
    the rest that fills no batch is dropped. The generator given to `transform` depends
    on (seed, epoch, index of the example) alone, also where another image stands for a
    damaged one: the next that can be read, in the order of `records`.

    Args:
        records: the training split.
        step: 0, 1, ...
        batch_size, seed, transform: as in `Source.train_batches`.
        rows: of the whole batch.
    """
    n = len(records)
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    order = epoch_permutation(n, seed=seed, epoch=epoch)
    indices = order[position * batch_size : (position + 1) * batch_size][rows]
    images, labels = [], []
    decoded = records.decode(indices)
    for index, (image, label, _) in zip(indices, decoded, strict=True):
        rng = np.random.default_rng(np.random.SeedSequence([seed, epoch, int(index)]))
        images.append(transform(rng, image))
        labels.append(label)
    return _stack(images, labels, np.ones(len(indices), np.bool_))


def eval_batch(
    records: Records,
    number: int,
    *,
    count: int,
    batch_size: int,
    transform: EvalTransform,
    rows: slice = slice(None),
) -> Batch:
    """Return the rows `rows` of batch `number` of the first `count` examples.

    Rows beyond `count`, and of damaged records that are skipped, are zeros, whose mask
    is False.

    Args:
        records: the validation split.
        number: 0, 1, ...
        count: 1 or more.
        batch_size, transform: as in `Source.eval_batches`.
        rows: of the whole batch.
    """
    wanted = (number * batch_size + np.arange(batch_size))[rows]
    real = wanted[wanted < count]
    # Of a batch without a real row, one image still tells the shape.
    indices = real if len(real) else np.array([count - 1])
    images, labels, mask = [], [], np.zeros(len(wanted), np.bool_)
    for row, (image, label, intact) in enumerate(records.decode(indices)):
        images.append(transform(image))
        labels.append(label)
        mask[row] = intact and row < len(real)
    return _stack(images, labels, mask)


def _stack(images: list, labels: list[int], mask: np.ndarray) -> Batch:
    """Return a batch of the first rows and a mask of all: zeros where it is False."""
    views = zip(*map(_views, images), strict=True)
    stacked = [_stack_view(same, len(mask)) for same in views]
    label = np.zeros(len(mask), np.int32)
    label[: len(labels)] = labels
    for array in (*stacked, label):
        array[~mask] = 0
    return {
        "image": stacked if isinstance(images[0], list) else stacked[0],
        "label": label,
        "mask": mask,
    }


def _stack_view(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise InputError(
            f"The images of a batch have different shapes, {min(shapes)} and "
            f"{max(shapes)}: crop them to one shape, or take batches of 1 per host."
        )
    batch = np.zeros((size, *images[0].shape), np.uint8)
    np.stack(images, out=batch[: len(images)])
    return batch


def _views(images: np.ndarray | list[np.ndarray]) -> list[np.ndarray]:
    return images if isinstance(images, list) else [images]


def _in_workers(
    make: Callable[[int], Batch], numbers: range, num_workers: int
) -> Generator[Batch]:
    """Yield make(number) of each of `numbers`, in order, made in worker processes."""
    if num_workers < 0:
        raise InputError(f"There are 0 or more workers, not {num_workers}.")
    return _feed(make, numbers, num_workers)


def _feed(
    make: Callable[[int], Batch], numbers: range, num_workers: int
) -> Generator[Batch]:
    import grain
    from absl import flags

    if not numbers:
        return
    # Grain reads flags of its own, and outside of absl's programs nobody parses them.
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
            yield {name: _copy(value) for name, value in batch.items()}
    except RuntimeError as error:
        raise InputError(
            "A process that decodes images was ended from outside "
            f"({first_line(error)}), as for want of memory: take fewer of them, or "
            "smaller batches."
        ) from error
    finally:
        iterator.close()


def _copy(value: np.ndarray | list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """Copy an array, which may be in shared memory: that goes back at once."""
    return [np.array(v) for v in value] if isinstance(value, list) else np.array(value)


def _start_worker(index: int, count: int) -> None:
    """Let a worker end with the process that started it, and not on its own."""
    import cv2

    cv2.setNumThreads(0)  # one worker for each core is threads enough
    # Ctrl-C reaches every process of the terminal, and SIGTERM often all of a job; the
    # first one saves, and then ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    parent = multiprocessing.parent_process()
    assert parent is not None  # None in the first process, which starts workers

    def follow_parent():
        parent.join()
        os._exit(1)  # it was killed, and so could not tell

    threading.Thread(target=follow_parent, daemon=True).start()
