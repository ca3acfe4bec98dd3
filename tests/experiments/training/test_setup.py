# SPDX-License-Identifier: Apache-2.0
"""From a config to the parts of a run: devices, batches, data on devices."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_configs import made

from experiments.training import setup
from rn_jax import InputError


@pytest.fixture(scope="module")
def experiment():
    return setup.prepare(made("resnet20", "digits", num_devices=2, batch_size=100))


def on(platform, experiment, **fields):
    """The experiment as if its devices were of another platform."""
    config = dataclasses.replace(experiment.config, **fields)
    devices = [SimpleNamespace(platform=platform)] * 2
    return dataclasses.replace(experiment, config=config, devices=devices)


def test_training_images_stay_on_accelerators_alone(experiment, monkeypatch):
    assert on("gpu", experiment).data_on_device
    assert on("tpu", experiment).data_on_device
    assert not on("cpu", experiment).data_on_device
    assert on("cpu", experiment).examples() == {}
    monkeypatch.setattr(setup, "MOST_ON_DEVICE", 10)
    assert not on("gpu", experiment).data_on_device  # too many of them


def test_the_config_decides_about_images_on_devices(experiment):
    assert on("cpu", experiment, data_on_device=True).data_on_device
    assert not on("gpu", experiment, data_on_device=False).data_on_device


def test_examples_are_the_rows_of_the_training_images(experiment):
    train = experiment.feed.parts["train"]
    examples = on("gpu", experiment).examples()
    rows = examples["images"].reshape(train.images.shape)
    np.testing.assert_array_equal(rows, train.images)
    np.testing.assert_array_equal(examples["labels"], train.labels)


def test_sizes_that_follow_from_others(experiment):
    assert experiment.steps_per_epoch == len(experiment.feed.parts["train"]) // 100
    fields = {"eval_batch_size": 7, "batch_norm_examples": 450}
    changed = on("cpu", experiment, **fields)
    assert changed.eval_batch_size == 8  # a multiple of two devices
    assert changed.statistics_batches == 4
    few = on("cpu", experiment, batch_norm_examples=1)
    assert few.statistics_batches == 1
    many = on("cpu", experiment, batch_norm_examples=10**6)
    assert many.statistics_batches == experiment.steps_per_epoch


def test_gates_begin_with_an_epoch_and_within_the_run():
    fields = {"stochastic_depth": {"last_survival": 0.5}, "batch_size": 100}
    fields |= {"num_devices": 1, "steps": None, "epochs": 5}
    for epoch, expected in ((0, 0), (2, 2), (9, 5)):
        config = made("resnet20", "digits", **fields, stochastic_depth_from_epoch=epoch)
        found = setup.prepare(config)
        assert found.gates_from_step == expected * found.steps_per_epoch


def test_micro_batches_divide_the_share_of_each_device():
    devices = setup.choose_devices(
        made("resnet20", batch_size=96, num_devices=2, micro_batches=4)
    )
    assert devices == jax.local_devices()[:2]
    config = made("resnet20", batch_size=96, num_devices=2, micro_batches=5)
    with pytest.raises(InputError, match="micro_batches 5 do not divide the 48"):
        setup.choose_devices(config)


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"stochastic_depth_from_epoch": 3}, "needs stochastic_depth"),
        (
            {
                "stochastic_depth_from_epoch": 3,
                "stochastic_depth": {"granularity": "subset", "schedule": "uniform"},
            },
            'other than "subset"',
        ),
        ({"stochastic_depth_from_epoch": -1}, "must be at least 0"),
    ],
)
def test_a_beginning_of_stochastic_depth_that_cannot_be(fields, says):
    with pytest.raises(InputError, match=says):
        setup.build(made("resnet20", "digits", **fields))
