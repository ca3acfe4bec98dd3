# SPDX-License-Identifier: Apache-2.0
"""A network and its test images on the devices, as studies use them."""

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from experiments.studies.subject import Log, Subject
from experiments.training import environment
from experiments.training.progress import bar
from rn_jax import data, eval_gates, parallel, survival_probs, unstack
from rn_jax.analysis import ensemble, lesion
from rn_jax.checkpoint import digest
from rn_jax.errors import InputError
from rn_jax.models.resnet import ResNet
from rn_jax.models.ror import LateBasicBlock

# Default number of test images on a CPU.
CPU_IMAGES = 2000


class Lab:
    """A network, its test images on the devices, and the functions compiled for them.

    Args:
        subject: network to study.
        images: number of test images, evenly spaced over the test set; None: all, or
            2,000 on a CPU.
        factors: "keep" the survival probabilities as factors of the branches at test,
            or "drop" them; no effect at constant depth.
        draws, seed, bounds, batch_size: see `experiments.analyze.analyze`.

    Attributes:
        earlier: JSON results of finished studies by name, for use by other studies.

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
        """Return a number of examples rounded up to a multiple of the devices."""
        devices = len(self.subject.devices)
        return math.ceil(size / devices) * devices

    def split(self, examples: Any, *, axis: int = 0) -> Any:
        """Split arrays over the devices, along the axis of examples."""
        return parallel.split_examples(examples, self.subject.devices, axis=axis)

    def rng(self, study: str) -> np.random.Generator:
        """Return the generator of a study's draws, independent of other studies."""
        return np.random.default_rng([self.seed, zlib.crc32(study.encode())])

    def initial_variables(self) -> Mapping[str, Any]:
        """Return new variables of the network, initialised by the lab's seed."""
        init = jax.jit(partial(self.model.init, train=False))
        images = self.subject.preprocess(self.subject.test.images[:1])
        return init(jax.random.key(self.seed), images)

    def first_batches(self, most: int, size: int) -> tuple[list[np.ndarray], str]:
        """Return the first test images in batches of one size, and how many they are.

        Args:
            most: largest number of images.
            size: largest size of a batch, rounded down to a multiple of the devices.

        Returns:
            uint8[size, H, W, C] each, and a text for "measured_on".
        """
        images, devices = self.subject.test.images[:most], len(self.subject.devices)
        size = devices * max(1, min(size, len(images)) // devices)
        starts = range(0, len(images) - size + 1, size)
        batches = [images[start : start + size] for start in starts]
        number, available = size * len(batches), len(self.subject.test)
        return batches, f"{number:,} of {available:,} test images"

    def each(self, values: Iterable, study: str) -> Iterator:
        """Return an iterator over the values with a progress bar."""
        return bar(list(values), desc=f"{self.subject.label} {study}")

    @cached_property
    def gates(self) -> np.ndarray:
        """Gates of the whole network, f32[L]: ones, or its factors at test."""
        settings = self.model.stochastic_depth
        if settings is None or self.factors == "drop":
            return np.ones(self.num_blocks, np.float32)
        return np.asarray(eval_gates(settings, self.num_blocks))

    @cached_property
    def variables(self) -> Mapping[str, Any]:
        """The network's variables on all devices."""
        return parallel.replicate(self.subject.variables, self.subject.devices)

    @cached_property
    def unstacked(self) -> Mapping[str, Any]:
        """The network's variables in host memory, with a subtree for each block."""
        return unstack(self.subject.variables)

    @cached_property
    def batches(self) -> Mapping[str, jax.Array]:
        """The test images and labels in N batches, [N, B, ...]."""
        test = self.subject.test
        chosen = np.arange(self.images) * len(test) // self.images
        size = self.whole(min(self._batch_size, len(chosen)))
        batches = list(data.eval_batches(test.take(chosen), batch_size=size))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        return self.split(stacked, axis=1)

    def error(self, gates: np.ndarray, variables: Any = None) -> float:
        """Return the test error in percent with gates f32[L].

        `variables` are other variables of the network; None: its own.
        """
        variables = self.variables if variables is None else variables
        wrong = self._count_errors(variables, np.asarray(gates), self.batches)  # ()
        return 100 * int(wrong) / self.images

    def probabilities(
        self, gates: np.ndarray, key: jax.Array | None = None
    ) -> np.ndarray:
        """Return the predictions for the test images with gates f32[L], f32[N, K].

        A Swapout network draws its masks from the key, if there is one.
        """
        found = self._probabilities(
            self.variables, np.asarray(gates), self.batches["image"], key
        )
        return np.asarray(found)[np.asarray(self.batches["mask"])]

    @cached_property
    def _probabilities(self):
        return ensemble.make_probabilities(
            model=self.model, preprocess=self.subject.preprocess
        )

    @property
    def labels(self) -> np.ndarray:
        """The classes of the test images, i32[N]."""
        return np.asarray(self.batches["label"])[np.asarray(self.batches["mask"])]

    @cached_property
    def baseline(self) -> float:
        """Test error in percent of the whole network."""
        return self.error(self.gates)

    @cached_property
    def deletions(self) -> list[float | None]:
        """Test error in percent with each block deleted, or None for fixed blocks."""
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
        """Damage of deleting each block in points of test error; 0 for fixed blocks."""
        return [0.0 if e is None else e - self.baseline for e in self.deletions]

    @property
    def run(self) -> Log:
        """The log of the run that trained the network."""
        assert self.subject.run is not None, "a study of a run's log needs a run"
        return self.subject.run

    @property
    def survival(self) -> np.ndarray | None:
        """Survival probabilities p_l, f64[L]; None at constant depth."""
        settings = self.model.stochastic_depth
        if settings is None:
            return None
        return np.asarray(survival_probs(settings, self.num_blocks), np.float64)

    @property
    def test_images(self) -> str:
        """The test images of lesions, in words."""
        return f"{self.images:,} of {len(self.subject.test):,} test images"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The network and the options, as in the JSON of every study."""
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
            "preactivation": isinstance(self.model, ResNet)
            and self.model.block_class.preactivation is not None
            and not issubclass(self.model.block_class, LateBasicBlock),
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


# --- Why a network cannot be studied --------------------------------------------------


def no_gates(subject: Subject) -> str | None:
    """Return why no block can be deleted, or None."""
    gated = any(block.skippable for block in subject.model.blocks)
    return None if gated else "it has no block that a gate can close"


def no_paths(subject: Subject) -> str | None:
    """Return why there are no paths of several lengths, or None."""
    several = subject.model.has_shortcuts
    return None if several else "without shortcuts it has a single path"
