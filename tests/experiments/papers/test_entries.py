# SPDX-License-Identifier: Apache-2.0
"""How the rows of tables are shortened."""

import dataclasses

import pytest
from test_configs import made

from experiments.papers.entries import shorten
from experiments.training.schedule import count_steps, make_schedule
from rn_jax import InputError


@pytest.mark.parametrize(
    "name",
    ["resnet110_he2015", "resnet152_svhn", "resnet110_sd", "resnet1202_sd", "wrn28_10"],
)
def test_shortened_schedule_is_the_whole_one_run_through_faster(name):
    config = made(name, "cifar10")
    short = shorten(config, 0.1)
    steps_per_epoch = 350
    rates = {}
    for label, each in (("whole", config), ("short", short)):
        total = count_steps(each, steps_per_epoch)
        schedule = make_schedule(each, steps_per_epoch, total)
        places = [(i + 0.5) / 200 for i in range(200)]
        rates[label] = [float(schedule(int(total * place))) for place in places]
        rates[label, "total"] = total
    assert rates["short"] == rates["whole"]
    assert len(set(rates["short"])) > 2
    assert rates["short", "total"] == pytest.approx(rates["whole", "total"] / 10)
    shortened = ("steps", "epochs", "lr_drops", "warmup", "plateau_patience")
    whole = {field: getattr(config, field) for field in shortened}
    assert dataclasses.replace(short, **whole) == config


def test_shortening_by_hand():
    config = made("preact_resnet110_short_paths")
    short = shorten(config, 0.02)
    assert (short.steps, short.lr_drops) == (1280, (640, 960))
    assert short.warmup == 8
    begins = config.stochastic_depth_from_epoch
    assert short.stochastic_depth_from_epoch == round(begins * 0.02)
    least = shorten(made("resnet152_svhn"), 0.001)
    assert least.epochs == 1  # of 50, and the drops with it
    assert least.lr_drops == pytest.approx((0.6, 0.7))
    assert shorten(config, 1) == config
    with pytest.raises(InputError, match="would drop twice in one step"):
        shorten(config, 1e-5)
