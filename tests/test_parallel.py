# SPDX-License-Identifier: Apache-2.0
"""Which devices are taken, and what is refused."""

import jax
import pytest

from rn_jax import InputError, parallel


def test_none_takes_as_many_cores_as_divide_the_batch(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    assert len(parallel.choose_devices(None, 64)) == 4
    assert len(parallel.choose_devices(None, 63)) == 3
    assert len(parallel.choose_devices(None, 61)) == 1


def test_batch_that_does_not_divide_is_said_with_one_that_would():
    with pytest.raises(InputError, match=r"batch_size 100 does not divide.*104"):
        parallel.choose_devices(8, 100)


def test_more_devices_than_there_are():
    count = len(jax.devices())
    with pytest.raises(InputError, match=f"num_devices is 99, but there are {count}"):
        parallel.choose_devices(99, 99)
    with pytest.raises(InputError, match="at least 1"):
        parallel.choose_devices(0, 8)


def test_virtual_devices_always_synchronise():
    devices = jax.devices()[:2]
    assert parallel.batch_norm_axis(devices, "device") == parallel.AXIS
    assert parallel.batch_norm_axis(devices, "global") == parallel.AXIS
    assert parallel.batch_norm_axis(devices[:1], "global") is None
    with pytest.raises(InputError, match="batch_norm must be"):
        parallel.batch_norm_axis(devices, "local")
