# SPDX-License-Identifier: Apache-2.0
"""Everything about processes and devices, and the steps compiled for them.

A run may have several processes, one per host or accelerator, joined by
`jax.distributed`. Each process calls every function here, feeds its own rows of each
batch, and has the whole state, which is replicated over all devices.
"""

import contextlib
import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from rn_jax.errors import InputError, first_line, must_be

AXIS = "devices"
MODES = ("pmap", "shard_map")


# --- Processes ------------------------------------------------------------------------


class AloneError(InputError):
    """An error in one process of several: it must not wait for the others to exit."""


def join_processes(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 100,
) -> bool:
    """Join the other processes of a run through `jax.distributed`.

    Call it before anything else uses JAX. On TPU slices, and for processes started by
    SLURM or Open MPI, no argument is needed. Elsewhere a process without arguments
    runs alone.

    Args:
        coordinator: HOST:PORT of process 0, the same in all processes.
        num_processes: number of processes of the run.
        process_id: this process, in 0 .. num_processes - 1.
        heartbeat_timeout: seconds without a heartbeat after which a process is
            considered dead and the others exit.

    Returns:
        Whether this process has joined others.

    Raises:
        InputError: only some of the first three arguments are given, a value is
            invalid, or the processes cannot be joined.
    """
    if heartbeat_timeout < 1:
        raise must_be("heartbeat_timeout", "at least 1 second", heartbeat_timeout)
    by_hand = _check_place(coordinator, num_processes, process_id)
    launched = not by_hand and launched_with_others(os.environ)
    if not by_hand and not launched and find_spec("libtpu") is None:
        return False
    # A run handles SIGTERM itself, at a step on which all processes agree.
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
            f"JAX cannot tell which processes to join ({first_line(error)}): pass "
            "--coordinator, --num_processes and --process_id, or start the processes "
            "with srun or mpirun; otherwise unset the SLURM_* or OMPI_* variables."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"This process cannot join the others ({reason}): start all of them, and "
            "pass each the same coordinator, which it must be able to reach."
        ) from error
    if num_processes is not None:  # by hand
        return num_processes > 1
    # Asking JAX starts its backend, which fixes the number of CPU devices.
    return launched or process_count() > 1


def _check_place(coordinator, num_processes, process_id):
    """Return whether the arguments are given, after checking them."""
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None):
        return False
    if None in given:
        raise InputError(
            "--coordinator, --num_processes and --process_id must be given together; "
            "on TPU slices, SLURM and Open MPI none of them is needed."
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise InputError(
            f"process_id must be in 0 .. num_processes - 1, not {process_id} of "
            f"{num_processes}."
        )
    if not coordinator.rpartition(":")[2].isdigit():
        raise must_be("coordinator", "HOST:PORT, such as node1:1234", coordinator)
    return True


def launched_with_others(environ: Mapping[str, str]) -> bool:
    """Return whether SLURM or Open MPI started this process as one of several.

    `jax.distributed` could detect this, but it also tries Kubernetes, which often
    starts single processes.
    """
    by_slurm = "SLURM_STEP_NODELIST" in environ and environ.get("SLURM_NTASKS") != "1"
    return by_slurm or environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1"


def process_count() -> int:
    """Return the number of processes, and start JAX's backend if it has not started.

    Raises:
        InputError: JAX cannot start on the platform that it is set to use.
    """
    try:
        return jax.process_count()
    except Exception as error:  # RuntimeError, AssertionError: JAX promises no type
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
        given = [f"{n}={os.environ[n]!r}" for n in names if os.environ.get(n)]
        explained = isinstance(error, RuntimeError)
        reason = first_line(error) if explained else "there is no such device here"
        old_name = os.environ.get("JAX_PLATFORM_NAME")
        raise InputError(
            f"JAX cannot start{' with ' if given else ''}{' and '.join(given)} "
            f"({reason}): {'unset JAX_PLATFORM_NAME, and ' if old_name else ''}set "
            "JAX_PLATFORMS to what this machine and jaxlib have, in lower case and "
            "without spaces, such as JAX_PLATFORMS=cpu, or unset it to let JAX choose."
        ) from error


def when_parent_ends(function: Callable[[], object]) -> None:
    """Call a function, in a thread, when the process that started this one has ended.

    Only a process that `multiprocessing` started has such a parent; another one raises
    an AssertionError.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait():
        parent.join()
        function()

    threading.Thread(target=wait, daemon=True).start()


def is_first_process() -> bool:
    """Return whether this process is the one that prints, plots and writes metrics."""
    process_count()
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Stop all processes if an error stops one of them in the body of this context.

    The body itself must not wait for other processes.

    Raises:
        InputError: another process raised an error. An error of this process is raised
            again.
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
            f"Process {np.argmax(failed)} of {len(failed)} failed and reports why."
        )


def wait_for_all() -> None:
    """Wait until all processes have called this."""
    _all_gather(np.bool_(True))


def all_true(value: bool) -> bool:
    """Return whether `value` is true in all processes, all of which must call this."""
    return bool(np.all(_all_gather(np.bool_(value))))


def _all_gather(value):
    if process_count() == 1:
        return value
    return multihost_utils.process_allgather(value)


# --- Devices --------------------------------------------------------------------------


def choose_devices(num_devices: int | None, batch_size: int) -> list[jax.Device]:
    """Return the devices to train on: accelerators, or virtual devices of the CPU.

    Call it before anything else uses JAX, except `join_processes`: the first use fixes
    the number of CPU devices.

    Args:
        num_devices: number of devices over all processes, each with an equal share.
            None for all accelerators, or else for the largest number of CPU cores that
            divides the batch.
        batch_size: examples of the global batch, which is split evenly.

    Returns:
        The devices of the first process, then those of the second, and so on.

    Raises:
        InputError: fewer devices are available, or they do not divide the batch.
    """
    if num_devices is not None and num_devices < 1:
        raise must_be("num_devices", "at least 1", num_devices)
    try:  # only the CPU's devices are virtual; accelerators ignore the setting
        # All cores, since later batches of this process may divide by more of them.
        virtual = max(cpu_cores(), num_devices or 1)
        jax.config.update("jax_num_cpu_devices", virtual)
    except RuntimeError:
        pass  # JAX is already in use, as in a notebook: use the devices it has
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
            f"num_devices {num_devices} is not divisible by {processes} processes."
        )
    if num_devices > processes * present:
        of_processes = "" if processes == 1 else f" of {processes} processes"
        raise InputError(
            f"num_devices is {num_devices}, but there are {processes * present} "
            f"{platform} devices{of_processes}."
        )
    if batch_size % num_devices:
        raise InputError(
            f"batch_size {batch_size} is not divisible by {num_devices} devices: use "
            f"{math.ceil(batch_size / num_devices) * num_devices}, for example."
        )
    share = num_devices // processes
    return [device for devices in by_process for device in devices[:share]]


def _devices_by_process():
    groups: list[list[jax.Device]] = [[] for _ in range(process_count())]
    for device in sorted(jax.devices(), key=lambda device: device.id):
        groups[device.process_index].append(device)
    return groups


def own_devices(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Return those of the devices that belong to this process."""
    return [d for d in devices if d.process_index == jax.process_index()]


def cpu_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def axis_name(devices: Sequence[jax.Device]) -> str | None:
    """Return the name of the axis that steps reduce over; None on one device."""
    return AXIS if len(devices) > 1 else None


def batch_norm_axis(devices: Sequence[jax.Device], batch_norm: str) -> str | None:
    """Return the axis over which BatchNorm synchronises its statistics, or None.

    Virtual CPU devices always synchronise, so the number of cores does not change the
    algorithm.

    Args:
        devices: the devices of the step.
        batch_norm: "global" to synchronise, "device" for statistics of each device.

    Raises:
        InputError: `batch_norm` is neither "global" nor "device".
    """
    if batch_norm not in ("global", "device"):
        raise must_be("batch_norm", '"global" or "device"', batch_norm)
    if batch_norm == "device" and devices[0].platform != "cpu":
        return None
    return axis_name(devices)


# --- Arrays on devices ----------------------------------------------------------------


def replicate(tree: Any, devices: Sequence[jax.Device], *, mode: str = "pmap") -> Any:
    """Copy a tree to every device, as the compiled steps take and return it.

    Args:
        tree: arrays that are the same in every process.
        devices, mode: those of the steps, see `compile_train_step`.
    """
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    if mode == "pmap":  # its arrays belong to one process
        devices = own_devices(devices)
    sharding = _sharding(devices)
    if jax.process_count() == 1 or mode == "pmap":
        return jax.device_put(tree, sharding)

    def put(leaf):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            data, kind = put(jax.random.key_data(leaf)), jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(data, impl=kind)
        # `device_put` would check that the arrays agree, and wait for all processes.
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

    return jax.tree.map(put, tree)


def split_examples(tree: Any, devices: Sequence[jax.Device], *, axis: int = 0) -> Any:
    """Put arrays on the devices of one process, with one axis split over them.

    Compiled functions of such arrays run on all of the devices, whose number must
    divide the axis.
    """
    return jax.device_put(tree, _sharding(devices, *[None] * axis, AXIS))


def _mesh(devices):
    return Mesh(np.array(devices), (AXIS,))


def _sharding(devices, *spec):
    return NamedSharding(_mesh(devices), P(*spec))


# --- Compiled steps -------------------------------------------------------------------


# XLA's options for a step that is one CUDA graph, with its convolutions, conditionals,
# loops and collectives: the host then launches once and waits for no decision in it.
# Conditionals in graphs need CUDA 12.3; for an older driver, XLA removes them from its
# list (command_buffer_scheduling.cc).
_CUDA_GRAPH: Mapping[str, Any] = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,"
    "DYNAMIC_SLICE_FUSION,CONVOLUTION,CONDITIONAL,WHILE,COLLECTIVES",
    "xla_gpu_graph_min_graph_size": 1,
    "xla_gpu_command_buffer_unroll_loops": True,
}


def cuda_graph_options(device: jax.Device) -> Mapping[str, Any] | None:
    """Return the compiler options that make a step one CUDA graph.

    Args:
        device: one of this process, or the description of one.

    Returns:
        The options; None for a device that is not an NVIDIA GPU, or if XLA does not
        know them, which is reported on stderr. With a driver older than CUDA 12.3, XLA
        leaves conditionals and loops out of the graph.
    """
    if device.platform != "gpu" or device.device_kind.startswith("AMD"):
        return None
    probe = jax.ShapeDtypeStruct((), np.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).lower(probe).compile(dict(_CUDA_GRAPH))
    except Exception as error:  # JAX promises no type
        reason = first_line(error)
        print(f"rn_jax: Training without CUDA graphs: {reason}", file=sys.stderr)
        return None
    return _CUDA_GRAPH


def place(rows: Any, devices: Sequence[jax.Device], *, mode: str = "pmap") -> Any:
    """Put a process's rows of a batch on its devices, as the compiled steps take them.

    Args:
        rows: arrays with the rows along axis 0.
        devices, mode: those of the steps, see `compile_train_step`.
    """
    if len(devices) == 1:
        return jax.device_put(rows, devices[0])
    if mode == "pmap":
        own = own_devices(devices)
        return jax.device_put(_split(rows, len(own)), _sharding(own, AXIS))
    split = partial(jax.make_array_from_process_local_data, _sharding(devices, AXIS))
    return jax.tree.map(split, rows)


# What of a batch each device has whole, if a step gathers it by `train.from_examples`.
EXAMPLES = ("images", "labels")


def compile_train_step(
    step: Callable,
    devices: Sequence[jax.Device],
    *,
    mode: str = "pmap",
    from_examples: bool = False,
    compiler_options: Mapping[str, Any] | None = None,
) -> Callable:
    """Compile step(state, batch, key), with the batch split over the devices.

    The replicated state is donated to the step, which returns the new one.

    Args:
        step: the function that `train.make_train_step` returns.
        devices: the devices of all processes.
        mode: "pmap" or "shard_map", two ways to the same program; ignored for a single
            device.
        from_examples: whether the step is one of `train.from_examples`. Its "images"
            and "labels" are then replicated, and its "order" is split.
        compiler_options: XLA's compiler options; None: those of `cuda_graph_options`.
            Several processes ignore them with "pmap", and so does the step's `lower`.

    Raises:
        InputError: `mode` is unknown.
    """
    if compiler_options is None:
        compiler_options = cuda_graph_options(own_devices(devices)[0])
    of_batch = {"order": P(AXIS), **dict.fromkeys(EXAMPLES, P())}
    specs = (P(), of_batch if from_examples else P(AXIS), P())
    return _compile(step, devices, mode, specs, donate=0, options=compiler_options)


def compile_eval_step(
    step: Callable, devices: Sequence[jax.Device], *, mode: str = "pmap"
) -> Callable:
    """Compile eval_step(variables, batch), see `compile_train_step`."""
    return _compile(step, devices, mode, specs=(P(), P(AXIS)))


def compile_statistics_step(
    step: Callable, devices: Sequence[jax.Device], *, mode: str = "pmap"
) -> Callable:
    """Compile step(variables, batch, number), see `compile_train_step`."""
    return _compile(step, devices, mode, specs=(P(), P(AXIS), P()))


def _compile(step, devices, mode, specs, *, donate=(), options=None):
    if mode not in MODES:
        raise must_be("parallelism", f"one of {MODES}", mode)
    if len(devices) == 1:
        return jax.jit(step, donate_argnums=donate, compiler_options=options)
    if mode == "pmap":
        compiled = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=jax.tree.map(
                lambda spec: 0 if spec == P(AXIS) else None,
                specs,
                is_leaf=lambda tree: isinstance(tree, P),
            ),
            out_axes=None,
            devices=devices,
            donate_argnums=donate,
        )
        # A lowered program takes arrays of all processes; each has only its own.
        if options and jax.process_count() == 1:
            compiled = _WithOptions(compiled, options)
        return _OverDevices(compiled, devices, mode)
    compiled = jax.jit(
        # check_vma=False, since per-device statistics in a conditional would fail it.
        jax.shard_map(
            step,
            mesh=_mesh(devices),
            in_specs=specs,
            out_specs=P(),
            check_vma=False,
        ),
        donate_argnums=donate,
        compiler_options=options,
    )
    return _OverDevices(compiled, devices, mode)


def _split(rows, parts):
    return jax.tree.map(lambda a: np.reshape(a, _in_parts(a, parts)), rows)


def _in_parts(array, parts):
    return (parts, array.shape[0] // parts, *array.shape[1:])


class _WithOptions:
    """A step by `jax.pmap`, which takes no compiler options; its lowered program does.

    All calls have the same shapes.
    """

    def __init__(self, compiled, options):
        self._compiled, self._options = compiled, dict(options)
        self._program = None

    def __call__(self, *args):
        if self._program is None:
            self._program = self._compiled.lower(*args).compile(self._options)
        return self._program(*args)

    def lower(self, *args):
        return self._compiled.lower(*args)


class _OverDevices:
    """A compiled step(first, batch, ...) over several devices.

    The batch is a process's rows, or what `place` and `replicate` put on the devices.
    """

    def __init__(self, compiled, devices, mode):
        self._compiled, self._devices, self._mode = compiled, devices, mode
        own = own_devices(devices)
        self._placed_on = set(own if mode == "pmap" else devices)
        self._parts = len(own)

    def __call__(self, first, batch, *rest):
        rows = {k: v for k, v in batch.items() if not self._is_placed(v)}
        if self._mode == "pmap":  # which sends them faster than `place` does
            rows = _split(rows, self._parts)
        elif rows:
            rows = place(rows, self._devices, mode=self._mode)
        return self._compiled(first, {**batch, **rows}, *rest)

    def lower(self, first, batch, *rest):
        """Lower for arrays or `jax.ShapeDtypeStruct`s, also for absent devices."""
        placed = {name: self._described(name, a) for name, a in batch.items()}
        return self._compiled.lower(first, placed, *rest)

    def _is_placed(self, array):
        return isinstance(array, jax.Array) and array.devices() == self._placed_on

    def _described(self, name, array):
        if name in EXAMPLES or self._is_placed(array):
            return array
        if self._mode == "pmap":
            shape = _in_parts(array, self._parts)
        else:
            shape = (array.shape[0] * jax.process_count(), *array.shape[1:])
        return jax.ShapeDtypeStruct(shape, array.dtype)


class Agreement:
    """Tells all processes at the same step that one of them has seen something.

    Each process asks once per step. Answers travel while the devices train, so no
    process waits for them.

    Args:
        delay: number of later calls after which an answer is read.
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
        """Return whether a process had seen it `delay` calls ago; alone, now."""
        if self._count is None:
            return seen
        own = np.array([seen], np.int32)
        everywhere = jax.make_array_from_process_local_data(self._sharding, own)
        self._asked.append(self._count(everywhere))
        return len(self._asked) > self._delay and int(self._asked.pop(0)) > 0
