# SPDX-License-Identifier: Apache-2.0
"""The feed that a config describes, and its number of training examples."""

import numpy as np
import pytest
from test_configs import made

from experiments.training import feed


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
