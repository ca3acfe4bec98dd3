# SPDX-License-Identifier: Apache-2.0
"""Data sets of tensorflow-datasets (TFDS): prepared, opened, and read as arrays.

They are read from array_record files, which need no TensorFlow.
"""

import contextlib
import importlib.util
import io
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rn_jax import filesystem
from rn_jax.data.catalog import DatasetSpec
from rn_jax.errors import InputError, first_line, must_be, package_needed, quiet_absl

# Prepared by `cifar`; TFDS's own builders prepare the others.
_WITHOUT_TENSORFLOW = ("cifar10", "cifar100")

# The most damaged records that may be skipped, in a split in memory or in a row: more
# of them mean that a whole file is lost.
MAX_SKIPPED = 100


class DamagedRecordError(Exception):
    """A record cannot be read; the message names it and gives the reason."""


def skips_damaged(damaged_records: str) -> bool:
    """Return whether the setting, "stop" or "skip", is the latter.

    Raises:
        InputError: it is neither.
    """
    if damaged_records not in ("stop", "skip"):
        raise must_be("damaged_records", "stop or skip", damaged_records)
    return damaged_records == "skip"


def resolve_data_dir(data_dir: str | os.PathLike | None) -> str:
    """Return the absolute path of the folder of TFDS data sets.

    Args:
        data_dir: the folder; None for TFDS's own rule.

    Raises:
        InputError: no folder can have this path.
    """
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return filesystem.absolute(os.path.expanduser(folder))


# --- Reading --------------------------------------------------------------------------


def read(
    spec: DatasetSpec, data_dir: str, *, skip_damaged: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read the training splits, then the test split, into memory.

    Args:
        spec: a data set whose images all have the shape `spec.image_shape`.
        data_dir: the folder that `resolve_data_dir` returns.
        skip_damaged: leave out up to `MAX_SKIPPED` damaged records per split, each
            reported on stderr.

    Returns:
        The images, uint8[N, H, W, C], and the labels, int32[N], of each split.

    Raises:
        InputError: see `rn_jax.data.load`.
    """
    builder = open_builder(spec, data_dir)
    with quiet_absl(), damage_in_a_sentence(spec, data_dir, builder.data_dir):
        return [
            _read_split(builder, spec, split, skip_damaged=skip_damaged)
            for split in (*spec.train_splits, spec.test_split)
        ]


def _read_split(builder, spec: DatasetSpec, split: str, *, skip_damaged: bool):
    """Decode a whole split, without its damaged records if those are skipped.

    The records are parsed here because TFDS's own feature decoding takes as long as
    Pillow takes for the images. Threads would be slower: a 32x32 image is decoded too
    quickly for the interpreter lock to change hands.
    """
    source = data_source(builder, split)
    images = np.empty((len(source), *spec.image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    damaged: dict[int, str] = {}  # reasons by index
    for start in range(0, len(source), 1000):
        indices = range(start, min(start + 1000, len(source)))
        for index, record in zip(indices, fetch(source, indices), strict=True):
            try:
                record = source[index] if record is None else record
                images[index], labels[index] = _decode(record, spec)
            except MemoryError:
                raise
            except Exception as error:  # of as many kinds as in `damage_in_a_sentence`
                damaged[index] = first_line(error)
                limit = min(MAX_SKIPPED, len(source) - 1) if skip_damaged else 0
                if len(damaged) > limit:
                    raise DamagedRecordError(
                        f"record {index} of the split {split}: {damaged[index]}"
                    ) from error
    for index, reason in damaged.items():
        print(
            f"Record {index} of the split {split} of {spec.name} in "
            f"{builder.data_path} is damaged ({reason}) and left out.",
            file=sys.stderr,
        )
    if not damaged:
        return images, labels
    return np.delete(images, list(damaged), axis=0), np.delete(labels, list(damaged))


def _decode(record: bytes, spec: DatasetSpec) -> tuple[np.ndarray, int]:
    """Return the image, uint8[H, W, C], and the label of a record."""
    from PIL import Image

    encoded, label = parse_record(record)
    pixels = Image.open(io.BytesIO(encoded)).tobytes()
    return np.frombuffer(pixels, np.uint8).reshape(spec.image_shape), label


def data_source(builder, split: str):
    """Return the records of a split, as bytes by index."""
    from tensorflow_datasets.core.decode import DeserializeMethod

    return builder.as_data_source(
        split,
        deserialize_method=DeserializeMethod.RAW_BYTES,
        file_format="array_record",
    )


def fetch(source: Any, indices: Sequence[int]) -> Sequence[bytes | None]:
    """Return the records at `indices`, or None for each if any cannot be read."""
    # In one call, because array_record then reads its files in parallel.
    try:
        return source.__getitems__(indices)
    except Exception:
        return [None] * len(indices)  # reading them one by one finds the damaged one


def parse_record(record: bytes) -> tuple[bytes, int]:
    """Return the encoded image and the label of a record."""
    from tensorflow_datasets.proto import tf_example_pb2

    fields = tf_example_pb2.Example.FromString(record).features.feature
    return fields["image"].bytes_list.value[0], fields["label"].int64_list.value[0]


# --- Opening --------------------------------------------------------------------------


def open_builder(spec: DatasetSpec, data_dir: str):
    """Return the TFDS builder of a data set, which is prepared first if necessary.

    Args:
        spec: a data set of TFDS.
        data_dir: the folder that `resolve_data_dir` returns.

    Raises:
        InputError: see `rn_jax.data.load`.
    """
    what = f"{spec.name} is read through tensorflow-datasets"
    with package_needed(what, '"rn_jax[train]"'):
        import tensorflow_datasets as tfds
    folder = os.path.join(data_dir, spec.name)
    with quiet_absl(), damage_in_a_sentence(spec, data_dir, folder):
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


def _require_random_access(builder, spec: DatasetSpec, folder: str) -> None:
    formats = sorted(f.value for f in builder.info.available_file_formats())
    if "array_record" not in formats:
        # Any call of the `tfds` command imports Apache Beam and mlcroissant, neither of
        # which tensorflow-datasets 4.9.10 installs.
        raise InputError(
            f"{spec.name} in {folder} is in the format {' and '.join(formats)}, which "
            "has no random access; convert it once with: "
            'pip install "rn_jax[prepare]" apache-beam mlcroissant && '
            f"tfds convert_format --dataset_version_dir={shlex.quote(folder)} "
            "--out_file_format=array_record"
        )


@contextlib.contextmanager
def damage_in_a_sentence(
    spec: DatasetSpec, data_dir: str, folder: str | os.PathLike
) -> Iterator[None]:
    """Turn any error that a damaged data set causes in a reader into an `InputError`.

    Args:
        spec: the data set.
        data_dir: the folder of TFDS data sets.
        folder: the folder of this one, which the message says to delete.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    # The exception depends on where the damage is: TFDS, array_record (RuntimeError),
    # protobuf, Pillow (OSError, SyntaxError) and our own shapes raise different ones.
    except Exception as error:
        raise InputError(
            f"{spec.name} in {os.fspath(folder)} is damaged or incomplete "
            f"({type(error).__name__}: {first_line(error)}); delete that folder and "
            f"prepare it again with: {_prepare_command(spec, data_dir)}"
        ) from error


# --- Preparing ------------------------------------------------------------------------


def _prepare(spec: DatasetSpec, data_dir: str, *, folder: str) -> None:
    """Download and prepare a data set, or raise an error that explains how to."""
    command = _prepare_command(spec, data_dir)
    by_tensorflow = spec.name not in _WITHOUT_TENSORFLOW
    if spec.downloads:
        manual = os.path.join(data_dir, "downloads", "manual")
        raise InputError(
            f"{spec.name} is not prepared in {folder}; its files are available to "
            f"registered users only: put {' and '.join(spec.downloads)} into {manual}, "
            f'then prepare it once with: pip install "rn_jax[prepare]" && {command}'
        )
    if by_tensorflow and importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{spec.name} is not prepared in {folder}; with Internet access, prepare "
            f'it once with: pip install "rn_jax[prepare]" && {command}'
        )
    # By default, logging shows a warning on stderr; preparation may take minutes.
    logging.getLogger(__name__).warning(
        "%s is not in %s: preparing it, once", spec.name, folder
    )
    if by_tensorflow:
        # In a separate process, because TensorFlow would keep memory, also of a GPU.
        result = subprocess.run(
            [sys.executable, "-c", _prepare_code(spec, data_dir)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode == 0:
            return
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1][:200]
    else:
        from rn_jax.data import cifar

        try:
            return cifar.prepare(spec.name, data_dir)
        except Exception as error:  # of the network, the disk, the archive, or TFDS
            if os.path.isdir(folder):  # another process was faster
                return
            reason = f"{type(error).__name__}: {first_line(error)}"
    raise InputError(
        f"{spec.name} is not in {folder} and could not be prepared there ({reason}); "
        f"with Internet access, try again with: {command}"
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
    code = _prepare_code(spec, data_dir)
    # In double quotes, which are easier to read, if no character has a meaning there.
    quoted = shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'
    return f"python -c {quoted}"
