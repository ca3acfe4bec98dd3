# SPDX-License-Identifier: Apache-2.0
"""The feed of a run's batches, as its config describes it."""

from functools import partial

import numpy as np

from configs.default import Config
from rn_jax import data, parallel
from rn_jax.data import imagenet, transforms
from rn_jax.errors import must_be

# Training images that ImageNet's validation part has at most: as many as the split on
# which errors are reported.
HELD_OUT = 50_000

test_view = transforms.eval_view  # its old name, kept for one version


def make_feed(config: Config, *, host_index: int, num_hosts: int) -> data.Feed:
    """Return the feed of a config's data set for one of the hosts, counted from 0.

    Raises:
        InputError: the data set cannot be read, or is too small for its protocol or
            `train_examples`.
    """
    host = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "host_index": host_index,
        "num_hosts": num_hosts,
    }
    if data.get_spec(config.dataset).crops_on_host:
        return _imagenet(config, host)
    dataset = data.load(
        config.dataset, data_dir=config.data_dir, damaged_records=config.damaged_records
    )
    parts = {"train": dataset.train, "test": dataset.test}
    if config.protocol == "45k5k":
        parts["train"], parts["val"] = data.split_validation(
            dataset, seed=config.split_seed
        )
    parts["train"] = _subset(parts["train"], config)
    return data.InMemory(parts, **host)


def _subset(train, config):
    """Return `config.train_examples` of the training examples, drawn at random."""
    size = _subset_size(len(train), config)
    if size == len(train):
        return train
    order = np.random.default_rng(config.split_seed).permutation(len(train))
    return train.take(np.sort(order[:size]))


def _subset_size(total, config):
    if config.train_examples is None:
        return total
    if config.train_examples > total:
        wanted = f"at most {total:,}, the training examples of {config.dataset}"
        raise must_be("train_examples", wanted, config.train_examples)
    return config.train_examples


def _imagenet(config, host):
    parts = imagenet.open_records(
        config.data_dir, damaged_records=config.damaged_records
    )
    if config.protocol == "45k5k":
        train = parts["train"]
        order = np.random.default_rng(config.split_seed).permutation(len(train))
        size = min(len(train) // 10, HELD_OUT)
        parts["train"] = train.take(np.sort(order[size:]))
        parts["val"] = train.take(np.sort(order[:size]))
    parts["train"] = _subset(parts["train"], config)
    train_view = partial(_without_draws, _view(config, config.image_size))
    if config.augment:
        train_view = partial(
            transforms.train_view,
            crop=config.train_crop,
            scales=config.train_scales,
            size=config.image_size,
            mirrored=config.augment_flip is not False,
        )
    workers = config.num_workers
    return imagenet.Source(
        parts=parts,
        **host,
        train_view=train_view,
        eval_view=_view(config, config.eval_size, config.eval_crops),
        num_workers=parallel.cpu_cores() if workers is None else workers,
    )


def mean_image(feed: imagenet.Source, config: Config) -> np.ndarray:
    """Return the mean of centre crops of training images, f32[size, size, 3].

    `imagenet.mean_image` samples them; `config.image_size` is the size of the crops.

    Raises:
        InputError: an image is damaged.
    """
    return imagenet.mean_image(
        feed.parts["train"],
        examples=config.mean_image_examples,
        view=_view(config, config.image_size),
        num_workers=feed.num_workers,
    )


def _view(config, size, crops="center"):
    """Return the function from an image to its crops of a size."""
    resize = config.eval_resize
    return partial(transforms.eval_view, crops=crops, resize=resize, size=size)


def _without_draws(view, rng, image):
    return view(image)


def count_train(config: Config) -> int:
    """Return the number of training examples, without reading them if it is known.

    Raises:
        InputError: the data set has to be read, and cannot be; or it is too small for
            `train_examples`.
    """
    spec = data.get_spec(config.dataset)
    total = spec.num_train
    if total is None:  # a data set that a user added
        total = len(data.load(spec.name, data_dir=config.data_dir).train)
    if config.protocol == "45k5k":
        on_host = spec.crops_on_host
        total -= min(total // 10, HELD_OUT) if on_host else data.held_out(spec, total)
    return _subset_size(total, config)
