# SPDX-License-Identifier: Apache-2.0
"""Data sets by name."""

import pytest

from rn_jax import InputError, data
from rn_jax.data import datasets


@pytest.mark.parametrize("call", [data.load, data.get_spec])
def test_an_unknown_name(call):
    with pytest.raises(InputError, match=r"^Unknown data set 'cifar_10'; .*10"):
        call("cifar_10")


def test_the_old_module_has_the_same_names():
    assert datasets.DATASETS is data.DATASETS and datasets.load is data.load


def test_imagenet_is_known_but_not_read_into_memory():
    spec = data.get_spec("imagenet2012")
    assert spec.crops_on_host and spec.num_train == 1_281_167
    assert not any(spec.crops_on_host for spec in data.DATASETS.values())
    with pytest.raises(
        InputError, match=r"^Unknown data set 'imagenet2012'; .*cifar10"
    ):
        data.load("imagenet2012")
