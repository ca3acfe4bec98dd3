# SPDX-License-Identifier: Apache-2.0
"""Data sets in host memory: loaded by name, split, and cut into batches.

Everything here is NumPy. Data sets of tensorflow-datasets (TFDS) are read without
TensorFlow; `digits` comes with scikit-learn. Both packages are imported only when one
of their data sets is loaded.
"""

import dataclasses
import functools
import os
from collections.abc import Generator

import numpy as np

from rn_jax.data import digits, tfds
from rn_jax.data.batches import (
    Batch,
    Feed,
    epoch_permutation,
    steps_per_epoch,
    train_indices,
)
from rn_jax.data.catalog import DATASETS, DatasetSpec
from rn_jax.errors import InputError, unknown_name, whole_number


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images: `images` uint8[N, H, W, C] and `labels` int32[N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Examples":
        """Return a read-only copy of the examples at `indices`, int[M], in order."""
        return _read_only(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
        spec: what was known before reading it.
        train: the training part: the splits `spec.train_splits`, concatenated.
        test: the test part.
        train_sizes: number of examples of each of those splits.
    """

    spec: DatasetSpec
    train: Examples
    test: Examples
    train_sizes: tuple[int, ...]


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    damaged_records: str = "stop",
) -> Dataset:
    """Return a data set as uint8 images and int32 labels in host memory.

    A second call with the same arguments returns the same object; its arrays are
    read-only. If a TFDS data set is not prepared yet, it is prepared first: CIFAR
    always, the others if TensorFlow is installed, in a separate process so that
    TensorFlow never enters this one.

    Args:
        name: a key of `DATASETS`.
        data_dir: folder of the TFDS data sets; None for TFDS's own rule: the
            environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets. `digits`
            ignores it.
        damaged_records: "stop" to raise an error at the first damaged record; "skip" to
            leave out up to `tfds.MAX_SKIPPED` per split, each reported on stderr.

    Raises:
        InputError: the name is unknown; the data set is neither prepared nor can be
            prepared here; its format has no random access; files are missing or
            damaged.
    """
    skip = tfds.skips_damaged(damaged_records)
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    if name == "digits":
        return load_cached(name, None, False)
    return load_cached(name, tfds.resolve_data_dir(data_dir), skip)


@functools.lru_cache(maxsize=8)
def load_cached(name: str, data_dir: str | None, skip_damaged: bool) -> Dataset:
    """Read a data set, or return the one that was read; `load` is its interface."""
    spec = DATASETS[name]
    if data_dir is None:
        *train, test = digits.read()
    else:
        *train, test = tfds.read(spec, data_dir, skip_damaged=skip_damaged)
    sizes = tuple(len(labels) for _, labels in train)
    images, labels = train[0]
    if len(train) > 1:  # a single split need not be copied
        images, labels = map(np.concatenate, zip(*train, strict=True))
    return Dataset(spec, _read_only(images, labels), _read_only(*test), sizes)


def _read_only(images: np.ndarray, labels: np.ndarray) -> Examples:
    images.setflags(write=False)
    labels.setflags(write=False)
    return Examples(images, labels)


def held_out(spec: DatasetSpec, num_train: int) -> int:
    """Return the number of training examples that `split_validation` holds out."""
    if spec.validation_per_class is None:
        return num_train // 10
    return spec.num_classes * sum(spec.validation_per_class)


def split_validation(dataset: Dataset, *, seed: int) -> tuple[Examples, Examples]:
    """Split the training part into training and validation by a permutation.

    The validation part has a tenth of the examples (5,000 of CIFAR's 50,000, as in
    Huang et al. 2016), or as many of each class as the data set's spec says: for SVHN
    400 of the training images and 200 of the extra ones, 6,000 in all.

    Args:
        dataset: the data set whose `train` is split.
        seed: fixes the permutation.

    Returns:
        (train, validation), both copies, each in the order of the permutation.

    Raises:
        InputError: there are too few examples, of one class or in all.
    """
    spec, examples = dataset.spec, dataset.train
    n = len(examples)
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(n)
    chosen = np.zeros(n, np.bool_)  # by position in that order
    if spec.validation_per_class is None:
        chosen[: held_out(spec, n)] = True
    else:
        split = np.repeat(np.arange(len(dataset.train_sizes)), dataset.train_sizes)
        for i, count in enumerate(spec.validation_per_class):
            for label in range(spec.num_classes):
                of_class = (split == i) & (examples.labels == label)
                positions = np.flatnonzero(of_class[order])
                if len(positions) <= count:
                    raise InputError(
                        f"The validation part of {spec.name} takes {count} examples of "
                        f"each class from its split {spec.train_splits[i]}, which has "
                        f"{len(positions)} of class {label}."
                    )
                chosen[positions[:count]] = True
    if not chosen.any():
        raise InputError(f"{n} training examples are too few to hold out a tenth.")
    return examples.take(order[~chosen]), examples.take(order[chosen])


# --- Batches --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class InMemory(Feed):
    """A feed of `Examples` in host memory."""

    def train_batches(self, first_step: int, last_step: int) -> Generator[Batch]:
        """See `Feed`."""
        for step in range(first_step, last_step):
            yield train_batch(
                self.parts["train"],
                step=step,
                batch_size=self.batch_size,
                seed=self.seed,
                rows=self.rows(self.batch_size),
            )

    def train_orders(self, first_step: int, last_step: int) -> Generator[np.ndarray]:
        """Yield, for each step, the order of its epoch instead of the batch.

        It is int32[b, S] for this host's b rows of a batch and the S steps of an epoch:
        column `step % S` has the indices of the examples that `train_batches` yields.
        The steps of an epoch get the same array.
        """
        size = steps_per_epoch(self.num_train, self.batch_size)
        rows = self.rows(self.batch_size)
        epoch = None
        for step in range(first_step, last_step):
            if step // size != epoch:
                epoch = step // size
                order = epoch_permutation(self.num_train, seed=self.seed, epoch=epoch)
                whole = order[: size * self.batch_size].reshape(size, self.batch_size)
                columns = np.ascontiguousarray(whole.T[rows], np.int32)
            yield columns

    def eval_batches(self, part: str, *, batch_size: int) -> Generator[Batch]:
        """See `Feed`."""
        rows = self.rows(batch_size)
        return eval_batches(self.parts[part], batch_size=batch_size, rows=rows)


def train_batch(
    examples: Examples,
    *,
    step: int,
    batch_size: int,
    seed: int,
    rows: slice = slice(None),
) -> Batch:
    """Return rows of the batch of a training step; the mask is True.

    Args:
        examples: the training examples.
        step: 0, 1, ...
        batch_size: examples in the whole batch.
        seed: seed of the order of examples.
        rows: the rows of the whole batch to return, as from `rows_of_host`.

    Raises:
        InputError: `batch_size` is not in 1..len(examples).
    """
    _, indices = train_indices(len(examples), step, batch_size=batch_size, seed=seed)
    indices = indices[rows]
    return {
        "image": examples.images[indices],  # (B, H, W, C)
        "label": examples.labels[indices],  # (B,)
        "mask": np.ones(len(indices), np.bool_),  # (B,)
    }


def eval_batches(
    examples: Examples, *, batch_size: int, rows: slice = slice(None)
) -> Generator[Batch]:
    """Yield rows of batches that contain each example once, in order.

    The last whole batch is filled up with zeros, whose mask is False. The number of
    batches does not depend on `rows`.

    Args:
        examples: the examples of a part.
        batch_size: examples in the whole batch.
        rows: the rows of the whole batch to yield, as from `rows_of_host`.

    Raises:
        InputError: `batch_size` is less than 1.
    """
    size = len(range(whole_number("batch_size", batch_size))[rows])
    for start in range(0, len(examples), batch_size):
        images = examples.images[start : start + batch_size][rows]  # (b, H, W, C)
        labels = examples.labels[start : start + batch_size][rows]  # (b,)
        missing = size - len(labels)
        yield {
            "image": np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]),
            "label": np.pad(labels, (0, missing)),
            "mask": np.arange(size) < len(labels),
        }
