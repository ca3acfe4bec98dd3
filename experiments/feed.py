# SPDX-License-Identifier: Apache-2.0
"""Where a run's batches come from: arrays in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from rn_jax import data
from rn_jax.data.datasets import Batch


@dataclass(frozen=True)
class InMemory:
    """The examples of a data set that fits into host memory, cut into batches.

    Attributes:
        parts: examples by name: "train", "test", and "val" if some are held out.
        batch_size: of training, over all devices.
        seed: of the order of examples.
    """

    parts: dict[str, data.Examples]
    batch_size: int
    seed: int

    @property
    def num_train(self) -> int:
        """Examples that are trained on."""
        return len(self.parts["train"])

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of the steps first_step .. last_step - 1."""
        for step in range(first_step, last_step):
            yield data.train_batch(
                self.parts["train"],
                step=step,
                batch_size=self.batch_size,
                seed=self.seed,
            )

    def eval_batches(self, part: str, *, batch_size: int) -> Iterator[Batch]:
        """Every example of a part once; the last batch is filled up."""
        return data.eval_batches(self.parts[part], batch_size=batch_size)
