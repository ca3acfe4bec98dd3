# SPDX-License-Identifier: Apache-2.0
"""Every config: the fields of default.py and no others, and the recipe of its paper."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import default
from experiments import setup
from rn_jax import create_model, data

FOLDER = Path(default.__file__).parent
NAMES = sorted({p.stem for p in FOLDER.glob("[!_]*.py")} - {"default"})


def load(name, *args):
    return importlib.import_module(f"configs.{name}").get_config(*args)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_config_is_complete_and_makes_a_network(name, dataset):
    config = load(name, dataset)
    assert set(config) == set(default.get_config())
    assert config.dataset == dataset
    values = config.to_dict()
    setup._check_values(values)
    model = create_model(
        config.model,
        stochastic_depth=setup._stochastic_depth(values["stochastic_depth"]),
        **values["model_kwargs"],
    )
    images = jnp.zeros((2, *data.get_spec(dataset).image_shape))
    shapes = jax.eval_shape(
        lambda: model.init({"params": jax.random.key(0)}, images, train=False)
    )
    assert "head" in shapes["params"]


def test_every_field_of_default_has_a_comment():
    for line in (FOLDER / "default.py").read_text().splitlines():
        if re.match(r"    config\.\w+ = ", line):
            assert "  # " in line, line


def test_no_config_repeats_what_it_starts_from():
    """A line that sets a field to the value it has already says nothing."""
    for name in NAMES:
        text = (FOLDER / f"{name}.py").read_text()
        bases = re.findall(r"config = (\w+)\.get_config\(dataset\)", text)
        for base in bases:
            before, after = load(base), load(name)
            for field in re.findall(r"    config\.(\w+) = ", text):
                assert before[field] != after[field], (name, field)


def schedule_of(name, steps_per_epoch, **overrides):
    config = load(name).to_dict() | overrides
    total = setup._total_steps(config, steps_per_epoch)
    return setup._schedule(config, steps_per_epoch, total), total


def test_recipe_of_he_2015():
    """papers.md's source: batch 128, 0.1, divided at 32k and 48k, 64k iterations."""
    config = load("resnet56")
    assert (config.batch_size, config.momentum, config.nesterov) == (128, 0.9, False)
    assert (config.weight_decay, config.weight_decay_on) == (1e-4, "kernels")
    schedule, total = schedule_of("resnet56", steps_per_epoch=390)
    assert total == 64_000
    rates = [float(schedule(s)) for s in (0, 31_999, 32_000, 48_000)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_resnet110_of_he_2015_warms_up():
    schedule, _ = schedule_of("resnet110_he2015", steps_per_epoch=390)
    rates = [float(schedule(s)) for s in (0, 399, 400, 32_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.01])


def test_recipe_of_huang_2016():
    """500 epochs, 0.1, divided after 250 and 375; Nesterov; decay on everything."""
    config = load("resnet110_sd")
    assert config.stochastic_depth["last_survival"] == 0.5
    assert config.model_kwargs.shortcut == "A_pooled"
    assert config.protocol == "45k5k"
    assert (config.batch_size, config.momentum, config.nesterov) == (128, 0.9, True)
    assert (config.weight_decay, config.weight_decay_on) == (1e-4, "all")
    schedule, total = schedule_of("resnet110_sd", steps_per_epoch=351)
    assert total == 500 * 351
    rates = [float(schedule(e * 351)) for e in (0, 249, 250, 374, 375)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_constant_depth_twin_differs_in_depth_alone():
    one, two = load("resnet110"), load("resnet110_sd")
    differ = {name for name in one if one[name] != two[name]}
    assert differ == {"stochastic_depth", "published_error_percent"}


def test_resnet1202_with_stochastic_depth_warms_up_for_ten_epochs():
    schedule, total = schedule_of("resnet1202_sd", steps_per_epoch=351)
    assert total == 300 * 351
    rates = [float(schedule(e * 351)) for e in (0, 9, 10, 150, 225)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.01, 0.001])


def test_derived_values_follow_an_override():
    """A fraction of the run moves with its length; iterations stay where they are."""
    schedule, total = schedule_of("resnet110_sd", steps_per_epoch=100, epochs=4)
    assert total == 400
    rates = [float(schedule(s)) for s in (199, 200, 300)]
    assert rates == pytest.approx([0.1, 0.01, 0.001])
    schedule, total = schedule_of("resnet20", steps_per_epoch=390, epochs=2)
    assert total == 780
    assert float(schedule(779)) == pytest.approx(0.1)
