# SPDX-License-Identifier: Apache-2.0
"""Batches, and the feed that a training loop takes them from.

A batch is ``{"image": uint8[B, H, W, C], "label": int32[B], "mask": bool[B]}``. Its
examples depend on the step and the seed alone, so a resumed run sees the batches that
the uninterrupted run would have seen.
"""

import abc
import dataclasses
import functools
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from rn_jax.errors import InputError, must_be, whole_number

Batch = dict[str, Any]  # arrays by name


@dataclasses.dataclass(frozen=True)
class Feed(abc.ABC):
    """A data set as one host of one run reads it.

    Attributes:
        parts: the examples by name: "train", "test", and "val" if some are held out.
        batch_size: training examples per step, over all hosts.
        seed: seed of everything drawn on the host.
        host_index: this host, in 0 .. num_hosts - 1.
        num_hosts: number of hosts; each makes an equal share of every batch's rows.
    """

    parts: Mapping[str, Any]
    _: dataclasses.KW_ONLY
    batch_size: int
    seed: int
    host_index: int = 0
    num_hosts: int = 1

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.parts["train"])

    @abc.abstractmethod
    def train_batches(self, first_step: int, last_step: int) -> Generator[Batch]:
        """Yield this host's rows of the batches of steps first_step .. last_step - 1.

        Raises:
            InputError: the batch fits neither the examples nor the hosts.
        """

    @abc.abstractmethod
    def eval_batches(self, part: str, *, batch_size: int) -> Generator[Batch]:
        """Yield this host's rows of batches that contain each example of a part once.

        Rows that fill up the last batch are zeros with a mask of False. Every host
        yields the same number of batches.

        Args:
            part: a name in `parts`.
            batch_size: examples per batch, over all hosts.

        Raises:
            InputError: the batch cannot be split over the hosts.
        """

    def rows(self, batch_size: int) -> slice:
        """Return this host's rows of a batch; see `rows_of_host`."""
        return rows_of_host(batch_size, self.host_index, self.num_hosts)


@functools.lru_cache(maxsize=2)
def epoch_permutation(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order, int64[n] and read-only, in which an epoch visits examples."""
    sequence = np.random.SeedSequence([seed, epoch])
    order = np.random.default_rng(sequence).permutation(n).astype(np.int64, copy=False)
    order.setflags(write=False)
    return order


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return floor(n / batch_size): the rest of an epoch's permutation is dropped.

    Raises:
        InputError: `batch_size` is not in 1..n.
    """
    if not 1 <= batch_size <= n:
        raise InputError(
            f"A batch size of {batch_size} does not fit {n} training examples."
        )
    return n // batch_size


def train_indices(
    n: int, step: int, *, batch_size: int, seed: int
) -> tuple[int, np.ndarray]:
    """Return a step's epoch and the indices, int64[batch_size], of its examples.

    Raises:
        InputError: `batch_size` is not in 1..n.
    """
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    order = epoch_permutation(n, seed=seed, epoch=epoch)
    return epoch, order[position * batch_size : (position + 1) * batch_size]


def rows_of_host(batch_size: int, host_index: int, num_hosts: int) -> slice:
    """Return the rows of a batch that a host makes, `batch_size / num_hosts` of them.

    Raises:
        InputError: the batch cannot be split evenly, or there is no such host.
    """
    if whole_number("batch_size", batch_size) % num_hosts:
        raise InputError(
            f"A batch of {batch_size} cannot be split evenly over {num_hosts} hosts: "
            f"choose a multiple of {num_hosts}."
        )
    if not 0 <= host_index < num_hosts:
        raise must_be("host_index", f"in 0 .. {num_hosts - 1}", host_index)
    size = batch_size // num_hosts
    return slice(host_index * size, (host_index + 1) * size)
