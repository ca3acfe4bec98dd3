# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 as tensorflow-datasets prepares them, without TensorFlow.

TFDS's own builders unpack the archive and encode the images with TensorFlow. The
builders here have the same names, versions, features, checksums and order of examples,
but read the archive with tarfile and encode with Pillow.
"""

import os
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from rn_jax import filesystem

_SHAPE = (3, 32, 32)  # of an image in the archive, after its labels


class _FromArchive:
    """What both builders do differently from TFDS's."""

    _cifar_info: Any  # TFDS's: the archive's address and content
    info: Any

    def _split_generators(self, dl_manager):
        facts = self._cifar_info
        archive = dl_manager.download(facts.url)
        for key, file in zip(facts.label_keys, facts.label_files, strict=True):
            names = self._content(archive, file).decode().split()
            self.info.features[key].names = names
        return {
            "train": self._examples(archive, facts.train_files, "train_"),
            "test": self._examples(archive, facts.test_files, "test_"),
        }

    def _examples(
        self, archive: os.PathLike, files: Sequence[str], prefix: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        keys = self._cifar_info.label_keys
        index = 0  # also the key by which TFDS shuffles
        for file in files:
            content = np.frombuffer(self._content(archive, file), np.uint8)
            for row in content.reshape(-1, len(keys) + np.prod(_SHAPE)):
                labels, pixels = np.split(row, [len(keys)])
                image = pixels.reshape(_SHAPE).transpose(1, 2, 0)  # (H, W, C)
                yield (
                    index,
                    {
                        **dict(zip(keys, labels.tolist(), strict=True)),
                        "id": f"{prefix}{index:05d}",
                        "image": Image.fromarray(np.ascontiguousarray(image)),
                    },
                )
                index += 1

    def _content(self, archive: os.PathLike, file: str) -> bytes:
        with (
            epath.Path(archive).open("rb") as stream,
            tarfile.open(fileobj=stream) as tar,
        ):
            member = tar.extractfile(self._cifar_info.prefix + file)
            assert member is not None  # it is not a folder
            return member.read()


# Not registered, so that tfds.builder(...) still returns TFDS's own.
class _Cifar10(  # type: ignore[call-arg]
    _FromArchive, tfds.image_classification.Cifar10, skip_registration=True
):
    name = "cifar10"
    url_infos = tfds.image_classification.Cifar10.url_infos


class _Cifar100(  # type: ignore[call-arg]
    _FromArchive, tfds.image_classification.Cifar100, skip_registration=True
):
    name = "cifar100"
    url_infos = tfds.image_classification.Cifar100.url_infos


BUILDERS = {builder.name: builder for builder in (_Cifar10, _Cifar100)}


def prepare(name: str, data_dir: str) -> None:
    """Download a data set and write it to array_record files, as TFDS would.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: folder of the TFDS data sets.

    Raises:
        OSError: the archive's server cannot be reached.
        Exception: TFDS cannot download or read the archive.
    """
    with filesystem.literal(filesystem.absolute(data_dir), create=True) as data_dir:
        builder = BUILDERS[name](data_dir=data_dir)
        downloaded = (epath.Path(data_dir) / "downloads" / name).glob("*.tar.gz")
        if not any(downloaded):  # TFDS itself would try to connect for three minutes
            with urllib.request.urlopen(builder._cifar_info.url, timeout=30):
                pass
        builder.download_and_prepare(file_format="array_record")
