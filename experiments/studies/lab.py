# SPDX-License-Identifier: Apache-2.0
"""What studies are measured with: a network and its test images, on the devices."""

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.studies.subject import Subject
from experiments.training import environment
from rn_jax import data, eval_gates, parallel, survival_probs, unstack
from rn_jax.analysis import lesion
from rn_jax.checkpoint import digest
from rn_jax.errors import InputError
from rn_jax.models.resnet import ResNet

# Test images on a CPU, unless the caller says otherwise.
CPU_IMAGES = 2000


class Lab:
    """A network, its test images on the devices, and the functions compiled for them.

    Args:
        subject: the network.
        images: test images, evenly spaced over the test set; None: all, on a CPU 2,000.
        draws: random draws for each point.
        seed: of the draws.
        factors: "keep" the survival probabilities as factors of the branches at test,
            or "drop" them; without effect on networks of constant depth.
        bounds: ranges of path lengths, both ends included, whose share is wanted.
        batch_size: test images at a time.

    Attributes:
        earlier: results of finished studies by name, as JSON has them; another study
            may build on them.

    Raises:
        InputError: the test set has fewer images.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        images: int | None = None,
        draws: int = 10,
        seed: int = 0,
        factors: str = "keep",
        bounds: Sequence[tuple[int, int]] = (),
        batch_size: int = 250,
    ):
        self.subject, self.model = subject, subject.model
        self.blocks, self.num_blocks = self.model.blocks, self.model.num_blocks
        self.draws, self.seed, self.factors, self.bounds = draws, seed, factors, bounds
        self.earlier: dict[str, Mapping[str, Any]] = {}
        available = len(subject.test)
        if images is None:
            on_cpu = subject.devices[0].platform == "cpu"
            images = min(available, CPU_IMAGES) if on_cpu else available
        if images > available:
            raise InputError(
                f"--images is {images}, but {subject.dataset} has {available} test "
                "images."
            )
        self.images = images
        self._batch_size = self.whole(batch_size)
        self._count_errors = lesion.make_count_errors(
            model=self.model, preprocess=subject.preprocess
        )

    def whole(self, size: int) -> int:
        """Round a number of examples up to the same number on each device."""
        devices = len(self.subject.devices)
        return math.ceil(size / devices) * devices

    def split(self, examples: Any, *, axis: int = 0) -> Any:
        """Split arrays over the devices, along the axis of examples."""
        return parallel.split_examples(examples, self.subject.devices, axis=axis)

    def rng(self, study: str) -> np.random.Generator:
        """Return the generator of a study's draws, whichever others are done."""
        return np.random.default_rng([self.seed, zlib.crc32(study.encode())])

    def each(self, values: Iterable, study: str) -> Iterator:
        """Return the values, with a progress bar."""
        return tqdm(list(values), desc=f"{self.subject.label} {study}", disable=None)

    @cached_property
    def gates(self) -> np.ndarray:
        """f32[L] of the whole network: ones, or its factors at test."""
        settings = self.model.stochastic_depth
        if settings is None or self.factors == "drop":
            return np.ones(self.num_blocks, np.float32)
        return np.asarray(eval_gates(settings, self.num_blocks))

    @cached_property
    def variables(self) -> Mapping[str, Any]:
        """On all devices."""
        return parallel.replicate(self.subject.variables, self.subject.devices)

    @cached_property
    def unstacked(self) -> Mapping[str, Any]:
        """In host memory, with a subtree for each block."""
        return unstack(self.subject.variables)

    @cached_property
    def batches(self) -> Mapping[str, jax.Array]:
        """The test images in [N, B, ...]."""
        test = self.subject.test
        chosen = np.arange(self.images) * len(test) // self.images
        size = self.whole(min(self._batch_size, len(chosen)))
        batches = list(data.eval_batches(test.take(chosen), batch_size=size))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        return self.split(stacked, axis=1)

    def error(self, gates: np.ndarray, variables: Any = None) -> float:
        """Return the test error in percent with these gates, or other variables too."""
        variables = self.variables if variables is None else variables
        wrong = self._count_errors(variables, np.asarray(gates), self.batches)
        return 100 * int(wrong) / self.images

    @cached_property
    def baseline(self) -> float:
        """Test error in percent of the whole network."""
        return self.error(self.gates)

    @cached_property
    def deletions(self) -> list[float | None]:
        """Test error in percent with each block deleted; None where it cannot be."""
        if "delete_one" in self.earlier:
            return [b["error_percent"] for b in self.earlier["delete_one"]["blocks"]]
        return [
            self.error(lesion.without(self.gates, [block.index]))
            if block.skippable
            else None
            for block in self.each(self.blocks, "delete_one")
        ]

    @cached_property
    def damage(self) -> list[float]:
        """Points of test error that deleting each block costs; 0 where it cannot be."""
        return [0.0 if e is None else e - self.baseline for e in self.deletions]

    @property
    def run(self) -> Mapping[str, Any]:
        """The run that trained the network, which is ours; see `Subject`."""
        assert self.subject.run is not None, "studies of a run's log are of runs alone"
        return self.subject.run

    @property
    def survival(self) -> np.ndarray | None:
        """f[L], p_l; None at constant depth."""
        settings = self.model.stochastic_depth
        if settings is None:
            return None
        return np.asarray(survival_probs(settings, self.num_blocks), np.float64)

    @property
    def test_images(self) -> str:
        """What lesions are measured on, in words."""
        return f"{self.images:,} of {len(self.subject.test):,} test images"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the JSON of every study says of the network and the options."""
        subject = self.subject
        return {
            "label": subject.label,
            "source": subject.source,
            "model": subject.model_name,
            "model_kwargs": json.loads(json.dumps(dict(subject.model_kwargs))),
            "dataset": subject.dataset,
            "normalization": subject.normalization,
            "num_blocks": self.num_blocks,
            "num_classes": self.model.num_classes,
            "residual": isinstance(self.model, ResNet) and self.model.has_shortcuts,
            "has_shortcuts": self.model.has_shortcuts,
            "weights_sha256": digest(subject.variables),
            "images": self.images,
            "test_images": len(subject.test),
            "draws": self.draws,
            "seed": self.seed,
            "gates": self._gates_in_words(),
            "bounds": [list(pair) for pair in self.bounds],
            "device": f"{len(subject.devices)} x {subject.devices[0].device_kind}",
            "machine": environment.machine(),
            "versions": environment.versions(["jax", "flax", "numpy"]),
        }

    def _gates_in_words(self):
        settings = self.model.stochastic_depth
        if settings is None or settings.scaling != "test":
            return "all 1"
        keep = self.factors == "keep"
        return f"survival probabilities {'kept as factors' if keep else 'dropped'}"


# --- Which networks studies apply to --------------------------------------------------


def no_gates(subject: Subject) -> str | None:
    """Say why no block can be deleted, if so."""
    gated = any(block.skippable for block in subject.model.blocks)
    return None if gated else "it has no block that a gate acts on"


def no_paths(subject: Subject) -> str | None:
    """Say why there are no paths of several lengths, if so."""
    several = subject.model.has_shortcuts
    return None if several else "without shortcuts it has one path only"
