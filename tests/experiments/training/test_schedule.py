# SPDX-License-Identifier: Apache-2.0
"""The length of a run and its learning rate, by step and by how training goes."""

import pytest
from test_configs import made, schedule_of

from experiments.training.schedule import count_steps, make_feedback, make_schedule
from rn_jax import InputError


def rates(steps_per_epoch, places, **fields):
    schedule, _ = schedule_of("resnet20", steps_per_epoch=steps_per_epoch, **fields)
    return [float(schedule(step)) for step in places]


def test_the_shorter_of_steps_and_epochs_counts():
    for steps, epochs, expected in ((70, 2, 70), (None, 2, 200), (300, 2, 200)):
        config = made("resnet20", "digits", steps=steps, epochs=epochs)
        assert count_steps(config, 100) == expected


@pytest.mark.parametrize(
    "unit, drops",
    [("steps", (200, 300)), ("epochs", (2, 3)), ("fraction", (0.5, 0.75))],
)
def test_drops_in_every_unit(unit, drops):
    fields = {"lr_drops": drops, "lr_drops_unit": unit, "steps": None, "epochs": 4}
    found = rates(100, (199, 200, 299, 300), **fields)
    assert found == pytest.approx([0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize("unit, length", [("steps", 50), ("epochs", 0.5)])
def test_warm_up_in_every_unit(unit, length):
    fields = {"warmup": length, "warmup_unit": unit, "warmup_learning_rate": 0.02}
    assert rates(100, (0, 49, 50), **fields) == pytest.approx([0.02, 0.02, 0.1])


def test_a_rate_by_plateau_does_not_depend_on_the_step():
    found = rates(100, (0, 150, 399), lr_schedule="plateau")
    assert found == pytest.approx([0.1, 0.1, 0.1])


def test_lengths_that_int32_cannot_count():
    config = made("resnet20", "digits", steps=None, epochs=2**20)
    with pytest.raises(InputError, match=r"steps are 2,147,483,648 steps; a run must"):
        count_steps(config, 2**11)
    config = made("resnet20", "digits", lr_drops=(2**20,), lr_drops_unit="epochs")
    with pytest.raises(InputError, match="lr_drops has 1048576, which is 2,147"):
        make_schedule(config, 2**11, 10)


def test_feedback_is_what_the_config_says():
    plain = make_feedback(made("resnet20"))
    assert (plain.warmup_until_error, plain.plateau_patience) == (None, None)
    warm = make_feedback(made("resnet110_he2015"))
    assert (warm.warmup_until_error, warm.warmup_factor) == (80, pytest.approx(0.1))
    plateau = make_feedback(made("resnet34_a"))
    fields = plateau.plateau_factor, plateau.plateau_patience, plateau.plateau_drops
    config = made("resnet34_a")
    assert fields == (0.1, config.plateau_patience, config.plateau_drops)


def test_cosine_goes_to_zero_at_the_end_of_the_run():
    fields = {"lr_schedule": "cosine", "epochs": 2, "warmup": 100}
    schedule, total = schedule_of("resnet20", steps_per_epoch=300, **fields)
    assert total == 600
    rates = [float(schedule(step)) for step in (0, 99, 100, 350, 600)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.05, 0])


def test_derived_values_follow_an_override():
    """A fraction of the run moves with its length; iterations stay where they are."""
    schedule, total = schedule_of("resnet110_sd", steps_per_epoch=100, epochs=4)
    assert total == 400
    rates = [float(schedule(s)) for s in (199, 200, 300)]
    assert rates == pytest.approx([0.1, 0.01, 0.001])
    schedule, total = schedule_of("resnet20", steps_per_epoch=390, epochs=2)
    assert total == 780
    assert float(schedule(779)) == pytest.approx(0.1)
