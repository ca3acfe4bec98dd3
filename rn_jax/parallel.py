# SPDX-License-Identifier: Apache-2.0
"""Processes, devices, and the steps compiled for them. All of it is here.

A run may have several processes, one for each host or accelerator, that
`jax.distributed` joins. Each of them calls everything here, feeds its own rows of every
batch, and holds the whole state: it is replicated over all devices.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rn_jax.errors import InputError, first_line

AXIS = "devices"
MODES = ("pmap", "shard_map")


# --- Processes ------------------------------------------------------------------------


class AloneError(InputError):
    """Raised in one process of several: it must not wait for the others at its end."""


def join_processes(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 100,
) -> bool:
    """Joins the other processes of a run, through `jax.distributed`.

    Call it before anything else touches JAX. On TPU slices, and where SLURM or Open
    MPI start the processes, no argument is needed; where none of them does, and without
    arguments, this process stays alone.

    Args:
        coordinator: HOST:PORT of process 0, the same in all.
        num_processes: of the run.
        process_id: of this one, 0 .. num_processes - 1.
        heartbeat_timeout: seconds without a sign of life after which a process counts
            as dead, and the others end.

    Returns:
        Whether this process has joined others.

    Raises:
        InputError: only some of the first three are given, or values that cannot be.
    """
    if heartbeat_timeout < 1:
        raise InputError(
            f"heartbeat_timeout must be at least 1 second, not {heartbeat_timeout}."
        )
    by_hand = _check_place(coordinator, num_processes, process_id)
    launched = not by_hand and _launched_with_others(os.environ)
    if not by_hand and not launched and find_spec("libtpu") is None:
        return False
    # A run answers SIGTERM by itself, at a step on which all processes agree.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except (KeyError, ValueError) as error:
        if not by_hand and not launched:
            return False  # libtpu is installed, but this is no TPU
        raise InputError(
            f"JAX cannot tell which processes to join ({first_line(error)}): give "
            "--coordinator, --num_processes and --process_id, or start the processes "
            "by srun or mpirun; outside them, unset the SLURM_* or OMPI_* variables."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"This process cannot join the others ({reason}): start all of them, and "
            "give each the same coordinator, which it can reach."
        ) from error
    if num_processes is not None:  # by hand
        return num_processes > 1
    # To ask JAX starts its backend, which would fix the number of a CPU's devices.
    return launched or process_count() > 1


def _check_place(coordinator, num_processes, process_id):
    """Whether a place among others was given by hand; raises if it cannot be."""
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None):
        return False
    if None in given:
        raise InputError(
            "--coordinator, --num_processes and --process_id belong together; none of "
            "them is needed on TPU slices, SLURM and Open MPI."
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise InputError(
            f"process_id must be one of 0 .. num_processes - 1, not {process_id} of "
            f"{num_processes}."
        )
    if not coordinator.rpartition(":")[2].isdigit():
        raise InputError(
            f"coordinator must be HOST:PORT, as node1:1234, not {coordinator!r}."
        )
    return True


def _launched_with_others(environ: Mapping[str, str]) -> bool:
    """Whether SLURM or Open MPI started this process as one of several.

    `jax.distributed` would find out by itself, but tries Kubernetes too, by which many
    start single processes.
    """
    by_slurm = "SLURM_STEP_NODELIST" in environ and environ.get("SLURM_NTASKS") != "1"
    return by_slurm or environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1"


def process_count() -> int:
    """Return the number of processes, and start JAX's backend if nothing has yet.

    Raises:
        InputError: JAX cannot start on the platform that it is told to use.
    """
    try:
        return jax.process_count()
    except Exception as error:  # RuntimeError, AssertionError: JAX promises no type
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
        told = [f"{n}={os.environ[n]!r}" for n in names if os.environ.get(n)]
        is_told = isinstance(error, RuntimeError)
        reason = first_line(error) if is_told else "there is no such device here"
        raise InputError(
            f"JAX cannot start{' with ' if told else ''}{' and '.join(told)} "
            f"({reason}): name what this machine and this jaxlib have, in lower case "
            "and without spaces, as JAX_PLATFORMS=cpu, and unset JAX_PLATFORM_NAME; "
            "with neither of them set, JAX chooses."
        ) from error


def is_first_process() -> bool:
    """Whether this process is the one that prints, plots and writes metrics."""
    process_count()
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """If an error stops one process inside, it stops all: none waits for another.

    What is inside must not wait for other processes itself.

    Raises:
        InputError: that another process raised an error; and what is raised inside.
    """
    error = None
    try:
        yield
    except BaseException as own:
        error = own
    failed = np.ravel(_all_gather(np.bool_(error is not None)))
    if error is not None:
        raise error
    if failed.any():
        raise InputError(
            f"Process {np.argmax(failed)} of {len(failed)} cannot go on and says why."
        )


def wait_for_all() -> None:
    """Returns when all processes have come here."""
    _all_gather(np.bool_(True))


def all_true(value: bool) -> bool:
    """Whether it is true in all processes, each of which has to ask."""
    return bool(np.all(_all_gather(np.bool_(value))))


def _all_gather(value):
    if process_count() == 1:
        return value
    return multihost_utils.process_allgather(value)


# --- Devices --------------------------------------------------------------------------


def choose_devices(num_devices: int | None, batch_size: int) -> list[jax.Device]:
    """Devices to train on, one per CPU core where there is no accelerator.

    Call it before anything else touches JAX, but for `join_processes`: the number of
    CPU devices is fixed by the first use.

    Args:
        num_devices: of all processes, each with the same number of them. None takes all
            accelerators, or of the CPU as many cores as divide the batch.
        batch_size: the global batch, split evenly.

    Returns:
        Those of the first process, then those of the second, and so on.

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
    by_process = _devices_by_process()
    processes, present = len(by_process), min(map(len, by_process))
    platform = by_process[0][0].platform
    if num_devices is None:
        num_devices = processes * present
        if platform == "cpu":
            usable = range(
                processes, processes * min(cpu_cores(), present) + 1, processes
            )
            num_devices = max(
                (n for n in usable if batch_size % n == 0), default=processes
            )
    if num_devices % processes:
        raise InputError(
            f"num_devices {num_devices} does not divide by the {processes} processes."
        )
    if num_devices > processes * present:
        of_processes = "" if processes == 1 else f" of {processes} processes"
        raise InputError(
            f"num_devices is {num_devices}, but there are {processes * present} "
            f"{platform} devices{of_processes}."
        )
    if batch_size % num_devices:
        raise InputError(
            f"batch_size {batch_size} does not divide by {num_devices} devices; "
            f"{math.ceil(batch_size / num_devices) * num_devices} would."
        )
    share = num_devices // processes
    return [device for devices in by_process for device in devices[:share]]


def _devices_by_process():
    groups: list[list[jax.Device]] = [[] for _ in range(process_count())]
    for device in sorted(jax.devices(), key=lambda device: device.id):
        groups[device.process_index].append(device)
    return groups


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


# --- Arrays on devices ----------------------------------------------------------------


def replicate(tree: Any, devices: Sequence[jax.Device], *, mode: str = "pmap") -> Any:
    """The tree with a copy on every device, as the compiled steps take and give it.

    Args:
        tree: of arrays, the same in every process.
        devices: those of the steps.
        mode: that of the steps.
    """
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    if mode == "pmap":  # whose arrays are those of one process
        devices = [d for d in devices if d.process_index == jax.process_index()]
    sharding = _sharding(devices)
    if jax.process_count() == 1 or mode == "pmap":
        return jax.device_put(tree, sharding)
    # Without `device_put`'s own check, for which the processes would meet.
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(
            np.shape(leaf), sharding, np.asarray(leaf).__getitem__
        ),
        tree,
    )


def split_examples(tree: Any, devices: Sequence[jax.Device], *, axis: int = 0) -> Any:
    """Arrays on the devices of one process, one axis of each split over them.

    Compiled functions of such arrays run on all of the devices.
    """
    return jax.device_put(tree, _sharding(devices, *[None] * axis, AXIS))


def _mesh(devices):
    return Mesh(np.array(devices), (AXIS,))


def _sharding(devices, *spec):
    return NamedSharding(_mesh(devices), P(*spec))


# --- Compiled steps -------------------------------------------------------------------


def compile_train_step(
    step: Callable, devices: Sequence[jax.Device], *, mode: str = "pmap"
) -> Callable:
    """step(state, batch, key), with the batch split over the devices.

    The state is replicated and given up to the step, which returns the new one.

    Args:
        step: of `train.make_train_step`.
        devices: of all processes.
        mode: "pmap" or "shard_map", two ways to the same program. One device needs
            neither.
    """
    return _compile(step, devices, mode, specs=(P(), P(AXIS), P()), donate=0)


def compile_eval_step(
    step: Callable, devices: Sequence[jax.Device], *, mode: str = "pmap"
) -> Callable:
    """eval_step(variables, batch), with the batch split over the devices."""
    return _compile(step, devices, mode, specs=(P(), P(AXIS)))


def compile_statistics_step(
    step: Callable, devices: Sequence[jax.Device], *, mode: str = "pmap"
) -> Callable:
    """step(variables, batch, number), with the batch split over the devices."""
    return _compile(step, devices, mode, specs=(P(), P(AXIS), P()))


def _compile(step, devices, mode, *, specs, donate=()):
    if mode not in MODES:
        raise InputError(f"parallelism must be one of {MODES}, not {mode!r}.")
    if len(devices) == 1:
        return jax.jit(step, donate_argnums=donate)
    if mode == "pmap":
        compiled = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=tuple(0 if spec == P(AXIS) else None for spec in specs),
            out_axes=None,
            devices=devices,
            donate_argnums=donate,
        )
        local = len(devices) // jax.process_count()
        return _OverDevices(compiled, partial(_in_rows, parts=local))
    compiled = jax.jit(
        # Statistics of each device in a conditional would fail the check of types.
        jax.shard_map(
            step,
            mesh=_mesh(devices),
            in_specs=specs,
            out_specs=P(),
            check_vma=False,
        ),
        donate_argnums=donate,
    )
    return _OverDevices(
        compiled,
        partial(jax.make_array_from_process_local_data, _sharding(devices, AXIS)),
    )


def _in_rows(array, parts):
    return np.reshape(array, (parts, -1, *array.shape[1:]))


class _OverDevices:
    """A compiled step(first, batch, ...) that takes a process's rows of the batch."""

    def __init__(self, compiled, split):
        self._compiled, self._split = compiled, split

    def __call__(self, first, batch, *rest):
        return self._compiled(first, jax.tree.map(self._split, batch), *rest)

    def lower(self, first, batch, *rest):
        return self._compiled.lower(first, jax.tree.map(self._split, batch), *rest)


class Agreement:
    """Lets all processes see at the same step that one of them has seen something.

    Each asks once a step, so the answers travel beside the steps of training, and none
    of them is waited for.

    Args:
        delay: asks after which an answer is looked at.
    """

    def __init__(self, delay: int = 4):
        self._delay = delay
        self._asked: list[jax.Array] = []
        self._count = None
        if jax.process_count() > 1:
            firsts = [group[0] for group in _devices_by_process()]
            self._sharding = _sharding(firsts, AXIS)
            self._count = jax.jit(
                lambda seen: seen.sum(), out_shardings=_sharding(firsts)
            )

    def any(self, seen: bool) -> bool:
        """Whether a process had seen it, `delay` asks ago; at once in a run of one."""
        if self._count is None:
            return seen
        own = np.array([seen], np.int32)
        everywhere = jax.make_array_from_process_local_data(self._sharding, own)
        self._asked.append(self._count(everywhere))
        return len(self._asked) > self._delay and int(self._asked.pop(0)) > 0
