# SPDX-License-Identifier: Apache-2.0
"""Devices: which ones to use, and the steps compiled for them. All of it is here."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rn_jax.errors import InputError

AXIS = "devices"


def choose_devices(num_devices: int | None, batch_size: int) -> list[jax.Device]:
    """Devices to train on, one per CPU core where there is no accelerator.

    Call it before anything else touches JAX: the number of CPU devices is fixed by the
    first use.

    Args:
        num_devices: None takes all accelerators, or of the CPU as many cores as divide
            the batch.
        batch_size: the global batch, split evenly.

    Raises:
        InputError: there are fewer devices, or they do not divide the batch.
    """
    if num_devices is not None and num_devices < 1:
        raise InputError(f"num_devices must be at least 1, not {num_devices}.")
    try:  # only the CPU's devices are virtual; accelerators ignore the setting
        # All cores, whatever this batch needs: later ones of this process may differ.
        virtual = max(cpu_cores(), num_devices or 1)
        jax.config.update("jax_num_cpu_devices", virtual)
    except RuntimeError:
        pass  # JAX is already in use, as in a notebook: take the devices there are
    devices = jax.devices()
    if num_devices is None:
        num_devices = len(devices)
        if devices[0].platform == "cpu":
            usable = range(1, min(cpu_cores(), len(devices)) + 1)
            num_devices = max(n for n in usable if batch_size % n == 0)
    if num_devices > len(devices):
        raise InputError(
            f"num_devices is {num_devices}, but there are {len(devices)} "
            f"{devices[0].platform} devices."
        )
    if batch_size % num_devices:
        raise InputError(
            f"batch_size {batch_size} does not divide by {num_devices} devices; "
            f"{math.ceil(batch_size / num_devices) * num_devices} would."
        )
    return devices[:num_devices]


def cpu_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def axis_name(devices: Sequence[jax.Device]) -> str | None:
    """Name of the axis that the steps reduce over; None on one device."""
    return AXIS if len(devices) > 1 else None


def batch_norm_axis(devices: Sequence[jax.Device], batch_norm: str) -> str | None:
    """Axis over which BatchNorm's statistics are synchronised; None for each its own.

    Virtual CPU devices always synchronise, so the number of cores does not change the
    algorithm.

    Raises:
        InputError: `batch_norm` is neither "global" nor "device".
    """
    if batch_norm not in ("global", "device"):
        raise InputError(
            f'batch_norm must be "global" or "device", not {batch_norm!r}.'
        )
    if batch_norm == "device" and devices[0].platform != "cpu":
        return None
    return axis_name(devices)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """The tree with a copy on every device, as the compiled steps take and give it."""
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    return jax.device_put(tree, _sharding(devices))


def split_examples(tree: Any, devices: Sequence[jax.Device], *, axis: int = 0) -> Any:
    """Arrays on the devices, one axis of each split over them.

    Compiled functions of such arrays run on all of the devices.
    """
    return jax.device_put(tree, _sharding(devices, *[None] * axis, AXIS))


def _sharding(devices, *spec):
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))


def compile_train_step(step: Callable, devices: Sequence[jax.Device]) -> Callable:
    """step(state, batch, key), with the batch split over the devices.

    The state is replicated and given up to the step, which returns the new one.
    """
    return _compile(step, devices, in_axes=(None, 0, None), donate_argnums=0)


def compile_eval_step(step: Callable, devices: Sequence[jax.Device]) -> Callable:
    """eval_step(variables, batch), with the batch split over the devices."""
    return _compile(step, devices, in_axes=(None, 0))


def compile_statistics_step(step: Callable, devices: Sequence[jax.Device]) -> Callable:
    """step(variables, batch, number), with the batch split over the devices."""
    return _compile(step, devices, in_axes=(None, 0, None))


def _compile(step, devices, *, in_axes, donate_argnums=()):
    if len(devices) == 1:
        return jax.jit(step, donate_argnums=donate_argnums)
    pmapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=in_axes,
        out_axes=None,
        devices=devices,
        donate_argnums=donate_argnums,
    )
    return _OverDevices(pmapped, len(devices))


class _OverDevices:
    """A pmapped step(first, batch, ...) that takes the whole batch and splits it."""

    def __init__(self, pmapped, num_devices):
        self._pmapped, self._num_devices = pmapped, num_devices

    def __call__(self, first, batch, *rest):
        return self._pmapped(first, self._split(batch), *rest)

    def lower(self, first, batch, *rest):
        return self._pmapped.lower(first, self._split(batch), *rest)

    def _split(self, batch):
        return jax.tree.map(
            lambda a: np.reshape(a, (self._num_devices, -1, *a.shape[1:])), batch
        )
