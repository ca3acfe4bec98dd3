# SPDX-License-Identifier: Apache-2.0
"""Values that no field of a config can have. The fault suite tries many more."""

import math

import pytest
from command import ROOT

from configs import default
from experiments import setup
from experiments.command import load_config
from rn_jax.errors import InputError

WRONG = [object(), -math.inf, {"a": {1, 2}}, 10**30, "\0"]


@pytest.fixture(scope="module")
def config():
    return load_config([f"--config={ROOT}/configs/resnet20.py:digits"])[1]


@pytest.mark.parametrize("field", default.get_config())
def test_values_of_a_wrong_type_are_refused_in_one_sentence(field, config):
    for wrong in WRONG:
        with pytest.raises(InputError) as error:
            setup.check({**config, field: wrong})
        message = str(error.value)
        assert field in message or "name" in message or "data set" in message
        assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"epoch": 3}, "Unknown field of the config 'epoch'; near it: epochs"),
        ({"augment": 1}, "augment must be True or False, not 1"),
        ({"epochs": True}, "epochs must be a whole number or None, not True"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number, not '0.1'"),
        ({"eval_batch_size": 10**9}, "eval_batch_size must be at most 65,536, not"),
        ({"augment_pad": 9}, "augment_pad must be at most 8, the side of an image"),
        ({"lr_drops": (True,)}, "lr_drops must be numbers of 0 or more"),
        ({"train_scales": (256, 1e9)}, "two whole numbers from 1 to 4,096"),
        ({"model_kwargs": {"features": 2**40}}, r"kwargs.features must be below 16,3"),
        ({"model_kwargs": {"norm": print}}, "which config.json can hold"),
        ({"model_kwargs": {"stage_sizes": "no"}}, "stage_sizes must be a tuple of"),
        ({"stochastic_depth": {"num_open": 1.5}}, "num_open must be a whole number"),
        ({"published_error_percent": {"digits": "5"}}, "digits must be from 0 to 100"),
    ],
)
def test_sentences(config, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        setup.check({**config, **changes})


def test_a_field_that_is_missing(config):
    rest = {name: value for name, value in config.items() if name != "seed"}
    with pytest.raises(InputError, match="The config has no seed"):
        setup.check(rest)
