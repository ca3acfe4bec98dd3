# SPDX-License-Identifier: Apache-2.0
"""Image data sets by name, held in host memory as uint8, and batches cut from them.

Everything here is numpy. Data sets of tensorflow-datasets (TFDS) are read from their
array_record files, without TensorFlow; `digits` comes with scikit-learn. Both packages
are imported only when a data set of theirs is loaded.

A batch is ``{"image": uint8[B, H, W, C], "label": int32[B], "mask": bool[B]}``, and
which examples it holds depends on the step and the seed alone, so that a resumed run
sees what the uninterrupted one would have seen.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from rn_jax import filesystem
from rn_jax.errors import InputError, first_line, unknown_name

Batch = dict[str, Any]  # arrays by name

# Mean and standard deviation of ImageNet's channels, for pixels from 0 to 1.
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STATISTICS = ("channel", "mean_image", "unit", "imagenet", "imagenet_mean")
NORMALIZATIONS = (*_STATISTICS, "contrast")  # of each image alone

# Prepared by `cifar`, the others by TFDS's own builders.
_WITHOUT_TENSORFLOW = ("cifar10", "cifar100")

# More damaged records than this, of a data set in memory or in a row, are no longer
# skipped: a whole file is lost then.
MAX_SKIPPED = 100


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What is known about a data set before it is read.

    Attributes:
        name: the name in `DATASETS`; that of TFDS, except for `digits`.
        image_shape: (H, W, C).
        num_classes: number of labels, which are 0 .. num_classes - 1.
        train_splits: TFDS splits that make up the training part, in this order.
        num_train: examples of those together; None where it takes reading to know.
        test_split: TFDS split used as the test part.
        pad: zeros put on each side before a random crop, in pixels; 0 for no crop.
        flip: whether a left-right mirror image is still an example of its class.
        validation_per_class: examples of each class that `split_validation` holds out,
            for each of `train_splits`; None for a tenth of all examples.
        class_names: one name per label, or None where they are not recorded here.
        downloads: files that have to be fetched by hand before TFDS can prepare it.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    train_splits: tuple[str, ...] = ("train",)
    num_train: int | None = None
    test_split: str = "test"
    pad: int = 4
    flip: bool = False
    validation_per_class: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    downloads: tuple[str, ...] = ()


_DIGIT_NAMES = tuple("0123456789")
_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="cifar10",
            num_train=50_000,
            image_shape=(32, 32, 3),
            num_classes=10,
            flip=True,
            class_names=tuple(_CIFAR10_NAMES.split()),
        ),
        DatasetSpec(
            name="cifar100",
            image_shape=(32, 32, 3),
            num_classes=100,
            num_train=50_000,
            flip=True,
        ),
        # Huang et al. 2016 and DenseNet train on train + extra, hold out 6,000 examples
        # balanced by class, and do not augment.
        DatasetSpec(
            name="svhn_cropped",
            image_shape=(32, 32, 3),
            num_classes=10,
            train_splits=("train", "extra"),
            num_train=73_257 + 531_131,
            pad=0,
            validation_per_class=(400, 200),
            class_names=_DIGIT_NAMES,
        ),
        # MNIST's digits lie in the middle 20x20 pixels: a shift by 4 cuts none off.
        DatasetSpec(
            name="mnist",
            num_train=60_000,
            image_shape=(28, 28, 1),
            num_classes=10,
            class_names=_DIGIT_NAMES,
        ),
        DatasetSpec(
            name="fashion_mnist",
            num_train=60_000,
            image_shape=(28, 28, 1),
            num_classes=10,
            flip=True,
            class_names=_FASHION_NAMES,
        ),
        # 1 of 8 pixels is what 4 of 32 is elsewhere.
        DatasetSpec(
            name="digits",
            num_train=1_437,
            image_shape=(8, 8, 1),
            num_classes=10,
            pad=1,
            class_names=_DIGIT_NAMES,
        ),
    )
}


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images: `images` uint8[N, H, W, C] and `labels` int32[N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Examples":
        """Return a copy of the examples at `indices` (int[M]), in that order."""
        return _read_only(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
        spec: what is known of it beforehand.
        train: the training part: the splits `spec.train_splits`, one after the other.
        test: the test part.
        train_sizes: examples of each of those splits.
    """

    spec: DatasetSpec
    train: Examples
    test: Examples
    train_sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Normalization:
    """Float32 `mean` and `std`, over pixel values 0..255.

    Both broadcast against [H, W, C].
    """

    mean: np.ndarray | np.float32
    std: np.ndarray | np.float32


def get_spec(name: str) -> DatasetSpec:
    """Return the `DatasetSpec` of `name`, without reading any data.

    Raises:
        InputError: `name` is not in `DATASETS`; names near it are listed first.
    """
    if name in DATASETS:
        return DATASETS[name]
    raise unknown_name("data set", name, DATASETS)


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    damaged_records: str = "stop",
) -> Dataset:
    """Return a data set as uint8 images and int32 labels in host memory.

    A second call with the same arguments returns the same object; its arrays are
    read-only. A TFDS data set that is not prepared is prepared first: CIFAR always, the
    others where TensorFlow is installed, in a process of its own, so that TensorFlow
    never enters this one.

    Args:
        name: a key of `DATASETS`.
        data_dir: folder that holds TFDS data sets; None for TFDS's own rule: the
            environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets. Not used by
            `digits`, whose split (1,437 / 360, stratified by class) is fixed.
        damaged_records: "stop" to raise at the first of them; "skip" to leave up to
            `MAX_SKIPPED` of a split out, each with a sentence on stderr.

    Raises:
        InputError: unknown name; not prepared and not preparable here; prepared in a
            format without random access; files missing or damaged.
    """
    skip = skips_damaged(damaged_records)
    if get_spec(name).name == "digits":
        return _load(name, None, False)
    return _load(name, resolve_data_dir(data_dir), skip)


def skips_damaged(damaged_records: str) -> bool:
    """Whether the setting "stop" or "skip" is the latter.

    Raises:
        InputError: it is neither.
    """
    if damaged_records not in ("stop", "skip"):
        raise InputError(
            f"damaged_records must be stop or skip, not {damaged_records!r}."
        )
    return damaged_records == "skip"


def resolve_data_dir(data_dir: str | os.PathLike | None) -> str:
    """Return the folder of the TFDS data sets, absolute, by TFDS's own rule if None.

    Raises:
        InputError: no folder can have this path.
    """
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return filesystem.absolute(os.path.expanduser(folder))


@functools.lru_cache(maxsize=8)
def _load(name: str, data_dir: str | None, skip_damaged: bool) -> Dataset:
    spec = DATASETS[name]
    if data_dir is None:
        return _load_digits(spec)
    builder = open_builder(spec, data_dir)
    with quiet_tfds(), damage_in_a_sentence(spec, data_dir, builder.data_dir):
        read = functools.partial(_read, builder, spec, skip_damaged=skip_damaged)
        train = [read(split) for split in spec.train_splits]
        return Dataset(
            spec=spec,
            train=_joined(train),
            test=read(spec.test_split),
            train_sizes=tuple(len(examples) for examples in train),
        )


def open_builder(spec: DatasetSpec, data_dir: str):
    """Return the TFDS builder of a data set, prepared before if need be and possible.

    Args:
        spec: of a data set of TFDS.
        data_dir: of `resolve_data_dir`.

    Raises:
        InputError: as `load`.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"{spec.name} is read through tensorflow-datasets, which does not import "
            f'here ({first_line(error)}): pip install "rn_jax[train]"'
        ) from error
    folder = os.path.join(data_dir, spec.name)
    with quiet_tfds(), damage_in_a_sentence(spec, data_dir, folder):
        with filesystem.literal(data_dir) as there:
            builder = tfds.builder(spec.name, data_dir=there)
            folder = os.path.join(data_dir, os.path.relpath(builder.data_dir, there))
            is_prepared = builder.is_prepared()
        if not is_prepared:
            _prepare(spec, data_dir, folder=folder)
        # A builder made from its code overlooks the formats that `tfds convert_format`
        # has added to a folder; one made from the folder sees them.
        builder = tfds.builder_from_directory(folder)
        _require_random_access(builder, spec, folder)
        return builder


@contextlib.contextmanager
def damage_in_a_sentence(
    spec: DatasetSpec, data_dir: str, folder: str | os.PathLike
) -> Iterator[None]:
    """Turn whatever a damaged data set makes a reader raise into an `InputError`."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    # Which exception a damaged file raises depends on where the damage is: TFDS,
    # array_record (RuntimeError), protobuf, Pillow (OSError, SyntaxError), our shapes.
    except Exception as error:
        raise InputError(
            f"{spec.name} in {os.fspath(folder)} is damaged or incomplete "
            f"({type(error).__name__}: {first_line(error)}); delete that folder and "
            f"prepare it again with: {_prepare_command(spec, data_dir)}"
        ) from error


def _require_random_access(builder, spec: DatasetSpec, folder: str) -> None:
    formats = sorted(f.value for f in builder.info.available_file_formats())
    if "array_record" not in formats:
        # The `tfds` command imports Apache Beam and mlcroissant, whatever it is asked
        # to do, and tensorflow-datasets 4.9.10 installs neither of them.
        raise InputError(
            f"{spec.name} in {folder} is in the format {' and '.join(formats)}, which "
            "has no random access; convert it once with: "
            'pip install "rn_jax[prepare]" apache-beam mlcroissant && '
            f"tfds convert_format --dataset_version_dir={shlex.quote(folder)} "
            "--out_file_format=array_record"
        )


class DamagedRecordError(Exception):
    """A record cannot be read; its text names it and says why."""


def _read(builder, spec: DatasetSpec, split: str, *, skip_damaged: bool) -> Examples:
    """Decode a whole split, without its damaged records if those are skipped.

    The records are parsed here because TFDS's own feature decoding takes as long as
    Pillow does for the images. Threads make it slower: a 32x32 image is decoded too
    quickly for the interpreter lock to be handed over.
    """
    source = data_source(builder, split)
    images = np.empty((len(source), *spec.image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    damaged: dict[int, str] = {}  # why, by place
    for start in range(0, len(source), 1000):
        places = range(start, min(start + 1000, len(source)))
        for place, record in zip(places, fetch(source, places), strict=True):
            try:
                record = source[place] if record is None else record
                images[place], labels[place] = _decode(record, spec)
            except MemoryError:
                raise
            except Exception as error:  # as many kinds as in `damage_in_a_sentence`
                damaged[place] = first_line(error)
                most = min(MAX_SKIPPED, len(source) - 1) if skip_damaged else 0
                if len(damaged) > most:
                    raise DamagedRecordError(
                        f"record {place} of the split {split}: {damaged[place]}"
                    ) from error
    if not damaged:
        return _read_only(images, labels)
    for place, reason in damaged.items():
        print(
            f"Record {place} of the split {split} of {spec.name} in "
            f"{builder.data_path} is damaged ({reason}) and left out.",
            file=sys.stderr,
        )
    whole = np.delete(np.arange(len(source)), list(damaged))
    return _read_only(images[whole], labels[whole])


def _decode(record: bytes, spec: DatasetSpec) -> tuple[np.ndarray, int]:
    """Return the image, uint8[H, W, C], and the label of a record."""
    from PIL import Image

    encoded, label = parse_record(record)
    pixels = Image.open(io.BytesIO(encoded)).tobytes()
    return np.frombuffer(pixels, np.uint8).reshape(spec.image_shape), label


def fetch(source: Any, indices: Sequence[int]) -> Sequence[bytes | None]:
    """Return the records at `indices`; None for all if one of them cannot be read."""
    # Together, because array_record then reads its files side by side.
    try:
        return source.__getitems__(indices)
    except Exception:
        return [None] * len(indices)  # one at a time it shows which one it was


def data_source(builder, split: str):
    """Return the records of a split, as bytes and by index."""
    from tensorflow_datasets.core.decode import DeserializeMethod

    return builder.as_data_source(
        split,
        deserialize_method=DeserializeMethod.RAW_BYTES,
        file_format="array_record",
    )


def parse_record(record: bytes) -> tuple[bytes, int]:
    """Return the encoded image and the label of a record."""
    from tensorflow_datasets.proto import tf_example_pb2

    fields = tf_example_pb2.Example.FromString(record).features.feature
    return fields["image"].bytes_list.value[0], fields["label"].int64_list.value[0]


def _joined(parts: list[Examples]) -> Examples:
    if len(parts) == 1:
        return parts[0]
    return _read_only(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def _prepare(spec: DatasetSpec, data_dir: str, *, folder: str) -> None:
    """Download and prepare a data set, most of them with TensorFlow, or say how to."""
    command = _prepare_command(spec, data_dir)
    if spec.name in _WITHOUT_TENSORFLOW:
        _say_that_it_is_prepared(spec, folder)
        from rn_jax.data import cifar

        try:
            cifar.prepare(spec.name, data_dir)
        except Exception as error:  # of the network, the disk, the archive, TFDS
            if os.path.isdir(folder):  # by another process, which came first
                return
            raise InputError(
                f"{spec.name} is not in {folder} and could not be prepared there "
                f"({type(error).__name__}: {first_line(error)}); with a network, try "
                f"again by: {command}"
            ) from error
        return
    if spec.downloads:
        manual = os.path.join(data_dir, "downloads", "manual")
        raise InputError(
            f"{spec.name} is not prepared in {folder}; its files are given out to "
            f"registered users only: put {' and '.join(spec.downloads)} into {manual}, "
            f'then prepare it once with: pip install "rn_jax[prepare]" && {command}'
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{spec.name} is not prepared in {folder}; prepare it once, with a "
            f'network, with: pip install "rn_jax[prepare]" && {command}'
        )
    _say_that_it_is_prepared(spec, folder)
    # A process of its own: TensorFlow would keep memory, of a GPU above all.
    result = subprocess.run(
        [sys.executable, "-c", _prepare_code(spec, data_dir)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise InputError(
            f"{spec.name} is not in {folder} and could not be prepared there "
            f"({lines[-1][:200]}); see what is wrong with: {command}"
        )


def _say_that_it_is_prepared(spec: DatasetSpec, folder: str) -> None:
    # logging's own default shows a warning on stderr; this may take minutes.
    logging.getLogger(__name__).warning(
        "%s is not in %s: preparing it, once", spec.name, folder
    )


def _prepare_code(spec: DatasetSpec, data_dir: str) -> str:
    if spec.name in _WITHOUT_TENSORFLOW:
        return (
            f"from rn_jax.data import cifar; cifar.prepare({spec.name!r}, {data_dir!r})"
        )
    return (
        "import tensorflow_datasets as tfds; "
        f"tfds.builder({spec.name!r}, data_dir={data_dir!r})"
        ".download_and_prepare(file_format='array_record')"
    )


def _prepare_command(spec: DatasetSpec, data_dir: str) -> str:
    """Return a shell command that prepares the data set (`tfds build` needs Beam)."""
    return f"python -c {_shell_quote(_prepare_code(spec, data_dir))}"


def _shell_quote(code: str) -> str:
    """Quote `code` for a shell, readably where its characters allow."""
    return shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keep TFDS from warning, through absl, about what `InputError` says better."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _load_digits(spec: DatasetSpec) -> Dataset:
    """Return scikit-learn's 1,797 scans, 360 of them for the test.

    Each class is shuffled and its share goes to the test part. The shuffle is that of
    RandomState, the one generator whose stream numpy promises never to change.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "digits comes with scikit-learn, which does not import here "
            f'({first_line(error)}): pip install "rn_jax[train]"'
        ) from error
    scans = load_digits()
    images = np.round(scans.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = scans.target.astype(np.int32)
    order = np.random.RandomState(0).permutation(len(labels))
    # An example's place within its shuffled class, in 0..1: the 360 lowest places hold
    # the same share of every class.
    place = np.empty(len(labels))
    for label in range(spec.num_classes):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    ranked = np.argsort(place, kind="stable")
    everything = Examples(images, labels)
    return Dataset(
        spec=spec,
        train=everything.take(np.sort(ranked[360:])),
        test=everything.take(np.sort(ranked[:360])),
        train_sizes=(len(labels) - 360,),
    )


def _read_only(images: np.ndarray, labels: np.ndarray) -> Examples:
    images.setflags(write=False)
    labels.setflags(write=False)
    return Examples(images, labels)


def held_out(spec: DatasetSpec, num_train: int) -> int:
    """Return how many training examples `split_validation` holds out."""
    if spec.validation_per_class is None:
        return num_train // 10
    return spec.num_classes * sum(spec.validation_per_class)


def split_validation(dataset: Dataset, *, seed: int) -> tuple[Examples, Examples]:
    """Split a validation part off the training part, by a permutation.

    It holds a tenth of the examples (5,000 of CIFAR's 50,000, as Huang et al. 2016), or
    as many of each class as the data set's spec says: of SVHN 400 of its training
    images and 200 of its extra ones, 6,000 in all.

    Args:
        dataset: of which `train` is split.
        seed: fixes the permutation.

    Returns:
        (train, validation), both copies, each in the order of the permutation.

    Raises:
        InputError: there are too few examples, of a class or in all.
    """
    spec, examples = dataset.spec, dataset.train
    n = len(examples)
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(n)
    chosen = np.zeros(n, np.bool_)  # by place in that order
    if spec.validation_per_class is None:
        chosen[: held_out(spec, n)] = True
    else:
        split = np.repeat(np.arange(len(dataset.train_sizes)), dataset.train_sizes)
        for i, count in enumerate(spec.validation_per_class):
            for label in range(spec.num_classes):
                of_class = (split == i) & (examples.labels == label)
                places = np.flatnonzero(of_class[order])
                if len(places) <= count:
                    raise InputError(
                        f"The validation part of {spec.name} takes {count} examples of "
                        f"each class from its split {spec.train_splits[i]}, which has "
                        f"{len(places)} of class {label}."
                    )
                chosen[places[:count]] = True
    if not chosen.any():
        raise InputError(f"{n} training examples are too few to hold out a tenth.")
    return examples.take(order[~chosen]), examples.take(order[chosen])


@functools.lru_cache(maxsize=2)
def epoch_permutation(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order, int64[n] and read-only, in which an epoch visits examples."""
    sequence = np.random.SeedSequence([seed, epoch])
    order = np.random.default_rng(sequence).permutation(n).astype(np.int64, copy=False)
    order.setflags(write=False)
    return order


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return floor(n / batch_size): the rest of an epoch's permutation is dropped.

    Raises:
        InputError: `batch_size` is not in 1..n.
    """
    if not 1 <= batch_size <= n:
        raise InputError(
            f"A batch size of {batch_size} does not fit {n} training examples."
        )
    return n // batch_size


def rows_of_host(batch_size: int, host_index: int, num_hosts: int) -> slice:
    """Return the rows of the whole batch that a host makes, `batch_size / num_hosts`.

    Raises:
        InputError: the batch cannot be cut into equal parts; no such host.
    """
    if batch_size < 1:
        raise InputError(f"A batch holds at least 1 example, not {batch_size}.")
    if batch_size % num_hosts:
        raise InputError(
            f"A batch of {batch_size} cannot be cut into {num_hosts} equal parts, one "
            f"for each host: take a multiple of {num_hosts}."
        )
    if not 0 <= host_index < num_hosts:
        raise InputError(f"Host {host_index} is none of 0 .. {num_hosts - 1}.")
    size = batch_size // num_hosts
    return slice(host_index * size, (host_index + 1) * size)


def train_batch(
    examples: Examples,
    *,
    step: int,
    batch_size: int,
    seed: int,
    rows: slice = slice(None),
) -> Batch:
    """Return the rows `rows` of the batch of training step `step`; the mask is True.

    Args:
        examples: those that are trained on.
        step: 0, 1, ...
        batch_size: of the whole batch.
        seed: of the order of examples.
        rows: of the whole batch, as `rows_of_host` has them.

    Raises:
        InputError: `batch_size` is not in 1..len(examples).
    """
    n = len(examples)
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    order = epoch_permutation(n, seed=seed, epoch=epoch)
    chosen = order[position * batch_size : (position + 1) * batch_size][rows]
    return {
        "image": examples.images[chosen],
        "label": examples.labels[chosen],
        "mask": np.ones(len(chosen), np.bool_),
    }


def eval_batches(
    examples: Examples, *, batch_size: int, rows: slice = slice(None)
) -> Generator[Batch]:
    """Yield the rows `rows` of batches of all examples once, in order.

    The last whole batch is filled up with zeros, whose mask is False; there are as many
    batches whatever the rows are.

    Args:
        examples: of the part.
        batch_size: of the whole batch.
        rows: of the whole batch, as `rows_of_host` has them.

    Raises:
        InputError: `batch_size` is less than 1.
    """
    if batch_size < 1:
        raise InputError(f"A batch holds at least 1 example, not {batch_size}.")
    size = len(range(batch_size)[rows])
    for start in range(0, len(examples), batch_size):
        images = examples.images[start : start + batch_size][rows]
        labels = examples.labels[start : start + batch_size][rows]
        missing = size - len(labels)
        yield {
            "image": np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]),
            "label": np.pad(labels, (0, missing)),
            "mask": np.arange(size) < len(labels),
        }


def normalization(examples: Examples, kind: str) -> Normalization:
    """Return the mean and standard deviation to normalise with.

    The sums are exact integers; only the last division and root are rounded.

    Args:
        examples: the part that is trained on (without the validation part).
        kind:
            "channel": mean and std of each channel, both float32[C].
            "mean_image": the mean image, float32[H, W, C], and one std, float32[], as
            in the code of Huang et al. 2016, which takes the std over all pixel values
            *before* the mean image is subtracted. So it is about the one overall mean,
            and what is left after normalising has a std somewhat below 1.
            "unit": 0 and 255, as DenseNet on SVHN.
            "imagenet": mean and std of ImageNet's channels, whatever the examples, as
            trained networks of PyTorch projects take their images.
            "imagenet_mean": the same mean and a std of 1, as the Caffe codes.

    Raises:
        InputError: another `kind`, or no examples.
    """
    mean, std = (255 * np.array(values, np.float32) for values in _IMAGENET)
    fixed = {
        "unit": Normalization(np.float32(0), np.float32(255)),
        "imagenet": Normalization(mean, std),
        "imagenet_mean": Normalization(mean, np.float32(1)),
    }
    if kind in fixed:
        return fixed[kind]
    if kind not in ("channel", "mean_image"):
        raise InputError(
            f"Unknown normalization {kind!r}: known: {', '.join(_STATISTICS)}."
        )
    n = len(examples)
    if n == 0:
        raise InputError("There are no examples to take a mean of.")
    shape = examples.images.shape[1:]
    total, squares = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for start in range(0, n, 1024):  # 1024 * 255**2 fits uint32
        chunk = examples.images[start : start + 1024].astype(np.uint32)
        total += chunk.sum(axis=0, dtype=np.uint32)
        squares += np.square(chunk).sum(axis=0, dtype=np.uint32)
    axes = (0, 1) if kind == "channel" else (0, 1, 2)
    count = n * total.size // total.sum(axis=axes).size
    overall_mean = total.sum(axis=axes) / count
    std = np.sqrt(squares.sum(axis=axes) / count - overall_mean**2)
    return Normalization(
        mean=(overall_mean if kind == "channel" else total / n).astype(np.float32),
        std=np.where(std > 0, std, 1).astype(np.float32),  # 1 where nothing varies
    )
