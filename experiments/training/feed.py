# SPDX-License-Identifier: Apache-2.0
"""Where a run's batches come from: arrays in memory, or ImageNet's JPEGs."""

import abc
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from configs.default import Config
from experiments.config import dataset_spec
from rn_jax import data, parallel
from rn_jax.data import imagenet, transforms
from rn_jax.data.datasets import Batch


@dataclass(frozen=True)
class Feed(abc.ABC):
    """What every feed has.

    Attributes:
        parts: examples by name: "train", "test", and "val" if some are held out.
        batch_size: of training, over all devices.
        seed: of all that is drawn on the host.
        host_index: of this host, in 0 .. num_hosts - 1.
        num_hosts: each makes its equal share of the rows of every batch.
    """

    parts: Mapping[str, Any]
    batch_size: int
    seed: int
    host_index: int
    num_hosts: int

    @property
    def num_train(self) -> int:
        """Examples that are trained on."""
        return len(self.parts["train"])

    @abc.abstractmethod
    def train_batches(self, first_step: int, last_step: int) -> Generator[Batch]:
        """This host's rows of the batches of the steps first_step .. last_step - 1."""

    @abc.abstractmethod
    def eval_batches(self, part: str, *, batch_size: int) -> Generator[Batch]:
        """This host's rows of a part's batches, of which the last is filled up.

        Args:
            part: every example of it is in one batch.
            batch_size: over all devices.
        """


@dataclass(frozen=True)
class InMemory(Feed):
    """The examples of a data set that fits into host memory, cut into batches."""

    parts: Mapping[str, data.Examples]

    def train_batches(self, first_step: int, last_step: int) -> Generator[Batch]:
        """See `Feed`."""
        for step in range(first_step, last_step):
            yield data.train_batch(
                self.parts["train"],
                step=step,
                batch_size=self.batch_size,
                seed=self.seed,
                rows=self._rows(self.batch_size),
            )

    def eval_batches(self, part: str, *, batch_size: int) -> Generator[Batch]:
        """See `Feed`."""
        return data.eval_batches(
            self.parts[part], batch_size=batch_size, rows=self._rows(batch_size)
        )

    def _rows(self, batch_size):
        return data.rows_of_host(batch_size, self.host_index, self.num_hosts)


@dataclass(frozen=True)
class ImageNet(Feed):
    """imagenet2012, decoded and cropped by worker processes while the devices compute.

    A host decodes only its own rows.

    Attributes:
        parts: records by name; "test" is the validation split.
        train_view: (generator, image) -> the crop to train on.
        test_view: image -> the crop, or crops, to test on.
        num_workers: processes.
    """

    parts: Mapping[str, imagenet.Records]
    train_view: imagenet.TrainTransform
    test_view: imagenet.EvalTransform
    num_workers: int

    def train_batches(self, first_step: int, last_step: int) -> Generator[Batch]:
        """See `Feed`."""
        return self._source("test").train_batches(
            first_step,
            last_step,
            batch_size=self.batch_size,
            seed=self.seed,
            transform=self.train_view,
            num_workers=self.num_workers,
            host_index=self.host_index,
            num_hosts=self.num_hosts,
        )

    def eval_batches(self, part: str, *, batch_size: int) -> Generator[Batch]:
        """See `Feed`."""
        return self._source(part).eval_batches(
            batch_size=batch_size,
            transform=self.test_view,
            num_workers=self.num_workers,
            host_index=self.host_index,
            num_hosts=self.num_hosts,
        )

    def _source(self, part):
        return imagenet.Source(train=self.parts["train"], test=self.parts[part])


def in_memory(config: Config, *, host_index: int, num_hosts: int) -> InMemory:
    """The feed of a data set that fits into memory.

    Args:
        config: of the run.
        host_index, num_hosts: as in `Feed`.

    Raises:
        InputError: the data set cannot be read, or is too small for its protocol.
    """
    dataset = data.load(
        config.dataset, data_dir=config.data_dir, damaged_records=config.damaged_records
    )
    parts = {"train": dataset.train, "test": dataset.test}
    if config.protocol == "45k5k":
        parts["train"], parts["val"] = data.split_validation(
            dataset, seed=config.split_seed
        )
    return InMemory(
        parts,
        batch_size=config.batch_size,
        seed=config.seed,
        host_index=host_index,
        num_hosts=num_hosts,
    )


def of_imagenet(config: Config, *, host_index: int, num_hosts: int) -> ImageNet:
    """The feed of imagenet2012, by the fields that are for it alone.

    Args:
        config: of the run.
        host_index, num_hosts: as in `Feed`.

    Raises:
        InputError: the data set cannot be read.
    """
    source = imagenet.open_source(
        config.data_dir, damaged_records=config.damaged_records
    )
    parts = {"train": source.train, "test": source.test}
    if config.protocol == "45k5k":
        order = np.random.default_rng(config.split_seed).permutation(len(source.train))
        size = _held_out(len(order))
        parts["train"] = source.train.take(np.sort(order[size:]))
        parts["val"] = source.train.take(np.sort(order[:size]))
    low, high = config.train_scales
    workers = config.num_workers
    center = _center_view(config)
    train = partial(
        train_view,
        crop=config.train_crop,
        scales=(low, high),
        size=config.image_size,
        mirrored=config.augment_flip is not False,
    )
    return ImageNet(
        parts,
        batch_size=config.batch_size,
        seed=config.seed,
        host_index=host_index,
        num_hosts=num_hosts,
        train_view=train if config.augment else partial(_without_draws, center),
        test_view=partial(
            test_view,
            crops=config.eval_crops,
            resize=config.eval_resize,
            size=config.eval_size,
        ),
        num_workers=parallel.cpu_cores() if workers is None else workers,
    )


def mean_image(feed: ImageNet, config: Config) -> np.ndarray:
    """Return the mean of centre crops of training images, f32[size, size, 3].

    Args:
        feed: whose examples to train on are sampled, see `imagenet.mean_image`.
        config: of the feed; `image_size` is the size of the crops.

    Raises:
        InputError: an image is damaged.
    """
    return imagenet.mean_image(
        feed.parts["train"],
        examples=config.mean_image_examples,
        transform=_center_view(config),
        num_workers=feed.num_workers,
    )


def _center_view(config):
    """The centre crop of the size that is trained on."""
    resize, size = config.eval_resize, config.image_size
    return partial(test_view, crops="center", resize=resize, size=size)


def count_train(config: Config) -> int:
    """Examples that a run is trained on, without reading them where it can be known.

    Raises:
        InputError: the data set has to be read, and cannot be.
    """
    spec = dataset_spec(config.dataset)
    total = spec.num_train
    if total is None:  # of a data set that someone added
        total = len(data.load(spec.name, data_dir=config.data_dir).train)
    if config.protocol == "full":
        return total
    if spec is imagenet.SPEC:
        return total - _held_out(total)
    return total - data.held_out(spec, total)


def _held_out(total):
    """Of ImageNet's training images."""
    return min(total // 10, HELD_OUT)


# Training images that ImageNet's validation part takes at most: as many as there are in
# the split that errors are reported on.
HELD_OUT = 50_000


def train_view(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    crop: str,
    scales: tuple[int, int],
    size: int,
    mirrored: bool,
) -> np.ndarray:
    """A random crop uint8[size, size, 3] of an image, mirrored half of the time.

    Args:
        rng: what is drawn comes from it.
        image: uint8[H, W, 3].
        crop: "scale", see `transforms.scale_crop`, or "area", `transforms.area_crop`.
        scales: of the shorter side for "scale", in pixels.
        size: in pixels.
        mirrored: False for no mirror images.
    """
    if crop == "scale":
        low, high = scales
        cut = transforms.scale_crop(rng, image, low=low, high=high, size=size)
    else:
        cut = transforms.area_crop(rng, image, size=size)
    return transforms.flip(rng, cut) if mirrored else cut


def test_view(image: np.ndarray, *, crops: str, resize: int, size: int) -> np.ndarray:
    """The centre crop uint8[size, size, 3], or ten crops uint8[10, size, size, 3].

    Args:
        image: uint8[H, W, 3].
        crops: "center" or "ten".
        resize: shorter side of the image before, in pixels.
        size: of the crops, in pixels.
    """
    resized = transforms.resize_shorter(image, resize)
    if crops == "ten":
        return transforms.ten_crop(resized, size)
    return transforms.center_crop(resized, size)


# A function of that name, imported into a test file, is not a test.
test_view.__test__ = False  # type: ignore[attr-defined]


def _without_draws(view, rng, image):
    return view(image)
