# SPDX-License-Identifier: Apache-2.0
"""The feed that a config describes, and its number of training examples."""

import numpy as np
import pytest
from test_configs import made

from experiments.training import feed
from rn_jax import InputError


@pytest.mark.parametrize("protocol", ["full", "45k5k"])
def test_the_number_of_examples_is_known_without_reading_them(protocol):
    config = made("resnet20", "digits", protocol=protocol)
    read = feed.make_feed(config, host_index=0, num_hosts=1)
    assert feed.count_train(config) == read.num_train
    assert ("val" in read.parts) == (protocol == "45k5k")


def test_examples_are_held_out_by_the_seed_of_the_split_alone():
    def held_out(**fields):
        config = made("resnet20", "digits", protocol="45k5k", **fields)
        return feed.make_feed(config, host_index=0, num_hosts=1).parts["val"].images

    np.testing.assert_array_equal(held_out(seed=1), held_out(seed=2))
    assert not np.array_equal(held_out(split_seed=1), held_out(split_seed=2))


def test_of_imagenet_a_tenth_and_at_most_50000_images_are_held_out():
    config = made("resnet34_a", "imagenet2012")
    assert config.protocol == "45k5k"
    assert feed.count_train(config) == 1_281_167 - 50_000


@pytest.mark.parametrize("protocol", ["full", "45k5k"])
def test_some_training_examples_are_drawn_by_the_seed_of_the_split_alone(protocol):
    def some(**fields):
        config = made("resnet20", "digits", protocol=protocol, **fields)
        read = feed.make_feed(config, host_index=0, num_hosts=1)
        assert feed.count_train(config) == read.num_train
        return read.parts

    every, drawn = some(), some(train_examples=300)
    assert drawn["train"].images.shape == (300, 8, 8, 1)
    pool = {image.tobytes() for image in every["train"].images}
    assert {image.tobytes() for image in drawn["train"].images} <= pool
    again = some(train_examples=300, seed=1)["train"].images
    np.testing.assert_array_equal(drawn["train"].images, again)
    other = some(train_examples=300, split_seed=1)["train"].images
    assert not np.array_equal(drawn["train"].images, other)
    for part in every.keys() - {"train"}:
        np.testing.assert_array_equal(every[part].labels, drawn[part].labels)


def test_more_training_examples_than_there_are_do_not_run():
    config = made("resnet20", "digits", train_examples=1438)
    wanted = "train_examples must be at most 1,437, the training examples of digits"
    with pytest.raises(InputError, match=wanted):
        feed.make_feed(config, host_index=0, num_hosts=1)
    with pytest.raises(InputError, match=wanted):
        feed.count_train(config)
