# SPDX-License-Identifier: Apache-2.0
"""The studies of a trained network: what is measured, as plain values for JSON.

Lesions, orders and paths are those of Veit et al. 2016; the gradient's magnitude is
figure 7 of Huang et al. 2016, the layers' responses figure 7 of He et al. 2015.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from scipy import stats
from tqdm import tqdm

from experiments.subject import Subject
from rn_jax import data, parallel, survival_probs, test_gates, unstack
from rn_jax.analysis import lesion, paths, responses

# Numbers of swaps that are tried, and how many blocks are deleted together at most.
SWAPS = (1, 2, 4, 6, 8, 12, 16, 20)
MOST_DELETED = 20
# Training images of a draw, each with a path of its own, and test images of the layers'
# responses.
GRADIENT_BATCH = 100
RESPONSE_IMAGES = 200
# Depths at which the dial stops.
DIAL_STOPS = 20


@dataclass(frozen=True)
class Options:
    """How a study is done; part of its JSON.

    Attributes:
        images: test images, evenly spaced over the test set.
        draws: random draws for each point.
        seed: of the draws.
        factors: "keep" the survival probabilities as factors of the branches at test,
            or "drop" them; without effect on networks of constant depth.
        bounds: ranges of path lengths of which the share is wanted.
    """

    images: int
    draws: int
    seed: int
    factors: str
    bounds: tuple[tuple[int, int], ...]


class Lab:
    """A network, its test images on the devices, and the functions compiled for them.

    Args:
        subject: the network.
        options: how to study it.
        batch_size: test images at a time.
        earlier: results of finished studies by name, as JSON has them; another study
            may build on them.
    """

    def __init__(
        self,
        subject: Subject,
        options: Options,
        *,
        batch_size: int,
        earlier: Mapping[str, Any],
    ):
        self.subject, self.options = subject, options
        self.model, self.blocks = subject.model, subject.model.blocks
        self.num_blocks = subject.model.num_blocks
        devices = len(subject.devices)
        self._batch_size = math.ceil(batch_size / devices) * devices
        self.earlier = dict(earlier)
        functions: dict[str, Any] = {
            "model": self.model,
            "preprocess": subject.preprocess,
        }
        self._count_errors = lesion.make_count_errors(**functions)
        self._path_gradient = paths.make_path_gradient(**functions)
        self._response_moments = responses.make_response_moments(**functions)

    def rng(self, study: str) -> np.random.Generator:
        """The generator of a study's draws, the same whichever others are done."""
        return np.random.default_rng([self.options.seed, zlib.crc32(study.encode())])

    def each(self, values: Iterable, study: str) -> Iterator:
        """The values, with a progress bar."""
        return tqdm(list(values), desc=f"{self.subject.label} {study}", disable=None)

    @cached_property
    def gates(self) -> np.ndarray:
        """f32[L] of the whole network: ones, or its factors at test."""
        settings = self.subject.stochastic_depth
        if settings is None or self.options.factors == "drop":
            return np.ones(self.num_blocks, np.float32)
        return np.asarray(test_gates(settings, self.num_blocks))

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
        chosen = np.arange(self.options.images) * len(test) // self.options.images
        size = min(self._batch_size, len(chosen))
        size = math.ceil(size / len(self.subject.devices)) * len(self.subject.devices)
        batches = list(data.eval_batches(test.take(chosen), batch_size=size))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        return parallel.split_examples(stacked, self.subject.devices, axis=1)

    def error(self, gates: np.ndarray, variables: Any = None) -> float:
        """Test error in percent with these gates, and other variables if given."""
        variables = self.variables if variables is None else variables
        wrong = self._count_errors(variables, np.asarray(gates), self.batches)
        return 100 * int(wrong) / self.options.images

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
        """Of the network, which is ours; see `Subject`."""
        assert self.subject.run is not None, "studies of a run's log are of runs alone"
        return self.subject.run

    @property
    def survival(self) -> np.ndarray | None:
        """f[L], p_l; None at constant depth."""
        settings = self.subject.stochastic_depth
        if settings is None:
            return None
        return np.asarray(survival_probs(settings, self.num_blocks), np.float64)

    def swap_pairs(self) -> list[tuple[int, int]]:
        """Pairs of blocks that can change places."""
        return lesion.interchangeable(self.blocks, self.unstacked)

    def reordered(self, order: np.ndarray) -> Mapping[str, Any]:
        """Variables on all devices, with the blocks in another order."""
        variables = lesion.reorder(self.unstacked, self.model, order)
        return parallel.replicate(jax.device_get(variables), self.subject.devices)

    def training_batch(self, chosen: np.ndarray) -> Mapping[str, jax.Array]:
        """The training images of these indices, split over the devices."""
        examples = self.subject.train.take(chosen)
        batch = {"image": examples.images, "label": examples.labels}
        return parallel.split_examples(batch, self.subject.devices)

    def path_gradients(
        self, batch: Mapping[str, jax.Array], taken: np.ndarray | None
    ) -> np.ndarray:
        """Norms f[B] at the input of the gradients of B training images along paths."""
        if taken is not None:
            taken = parallel.split_examples(taken, self.subject.devices, axis=1)
        norms = self._path_gradient(self.variables, self.gates, batch, taken)
        return np.asarray(norms, np.float64)

    def response_moments(self) -> tuple[int, list[Mapping[str, jax.Array]]]:
        """How many of the first test images, and their moments, in batches."""
        devices = len(self.subject.devices)
        images = self.subject.test.images[:RESPONSE_IMAGES]
        size = devices * max(1, min(32, len(images)) // devices)
        starts = range(0, len(images) - size + 1, size)
        return size * len(starts), [
            self._response_moments(
                self.variables,
                self.gates,
                parallel.split_examples(
                    images[start : start + size], self.subject.devices
                ),
            )
            for start in self.each(starts, "layer_responses")
        ]

    @property
    def test_images(self) -> str:
        """What lesions are measured on, in words."""
        return f"{self.options.images:,} of {len(self.subject.test):,} test images"


def delete_one(lab: Lab) -> dict[str, Any]:
    """Error after deleting each block in turn (Veit et al. 2016, figures 3 and 4)."""
    same = {block.same_shape for block in lab.blocks}
    return {
        "measured_on": lab.test_images,
        "blocks": [
            {
                "name": block.name,
                "stage": block.stage,
                # Among blocks that keep the shape, one that does not: its shortcut
                # stays. In a DenseNet every layer adds channels, and none is one.
                "transition": len(same) == 2 and not block.same_shape,
                "deletable": block.skippable,
                "error_percent": error,
            }
            for block, error in zip(lab.blocks, lab.deletions, strict=True)
        ],
    }


def delete_many(lab: Lab) -> dict[str, Any]:
    """Error after deleting k random blocks together (figure 5a)."""
    rng = lab.rng("delete_many")
    deletable = sum(block.skippable for block in lab.blocks)
    deleted = list(range(1, min(MOST_DELETED, deletable) + 1))
    errors = [
        [
            lab.error(lesion.without(lab.gates, lesion.draw_blocks(rng, lab.blocks, k)))
            for _ in range(lab.options.draws)
        ]
        for k in lab.each(deleted, "delete_many")
    ]
    return {
        "measured_on": lab.test_images,
        "deletable": deletable,
        "deleted": deleted,
        "error_percent": errors,
    }


def permute(lab: Lab) -> dict[str, Any]:
    """Error after random swaps of blocks, by Kendall's tau (figure 5b)."""
    rng, pairs = lab.rng("permute"), lab.swap_pairs()
    orders = []
    for swaps in lab.each(SWAPS, "permute"):
        for _ in range(lab.options.draws):
            order = lesion.draw_order(rng, lab.num_blocks, pairs, swaps)
            orders.append(
                {
                    "swaps": swaps,
                    "kendall_tau": lesion.kendall_tau(order),
                    "error_percent": lab.error(lab.gates[order], lab.reordered(order)),
                }
            )
    return {"measured_on": lab.test_images, "pairs": len(pairs), "orders": orders}


def path_lengths(lab: Lab) -> dict[str, Any]:
    """How long the paths are, and the depths of training with stochastic depth.

    "paths" counts all 2^L. With stochastic depth, "open_blocks" is the distribution of
    how many blocks are open in training, and "paths_in_training" that of the paths
    through these.
    """
    found = {"paths": np.full(lab.num_blocks, 0.5)}
    settings, survival = lab.subject.stochastic_depth, lab.survival
    if settings is not None and settings.num_open is not None:
        is_open = np.arange(lab.num_blocks) < settings.num_open  # exactly so many
        found |= {"open_blocks": 1.0 * is_open, "paths_in_training": 0.5 * is_open}
    elif survival is not None:
        found |= {"open_blocks": survival, "paths_in_training": survival / 2}
    return {
        "measured_on": "the number of blocks alone",
        **{
            name: _about(paths.length_distribution(p), lab.options)
            for name, p in found.items()
        },
    }


def _about(weights, options):
    """A distribution over lengths as values for JSON."""
    lengths = np.arange(len(weights))
    total = weights.sum()
    return {
        "weights": weights.tolist(),
        "mean": float(lengths @ weights / total),
        "interval_95": list(paths.shortest_interval(weights)),
        "shares": [
            {"from": low, "to": high, "share": paths.share(weights, low, high)}
            for low, high in options.bounds
        ],
    }


def path_gradients(lab: Lab) -> dict[str, Any]:
    """Gradient at the input along single paths, by their length (figure 6).

    A random path for each of the same random training images at every length. A few
    images that the network gets wrong have nearly all of the gradient, so "relative"
    divides each by the whole gradient of its image, and every image counts alike; the
    paper's norms are there too.
    """
    rng, draws, depth = lab.rng("path_gradients"), lab.options.draws, lab.num_blocks
    devices = len(lab.subject.devices)
    size = math.ceil(GRADIENT_BATCH / devices) * devices
    chosen = rng.integers(len(lab.subject.train), size=(draws, size))
    batches = [lab.training_batch(indices) for indices in chosen]
    whole = np.array([lab.path_gradients(batch, None) for batch in batches])
    norms = np.array(
        [
            [
                lab.path_gradients(batch, paths.draw_paths(rng, depth, length, size))
                for batch in batches
            ]
            for length in lab.each(range(depth + 1), "path_gradients")
        ]
    )
    known = whole > 0  # an image classified beyond all doubt has no gradient
    norms, whole = norms[:, known], whole[known]
    relative = (norms / whole).mean(axis=1)
    distribution = paths.length_distribution(np.full(depth, 0.5))
    return {
        "measured_on": f"{len(whole):,} training images, each with a path per length",
        "batch_norm": "moving averages, as in evaluation",
        "whole_norm_mean": float(whole.mean()),
        "norm_mean": norms.mean(axis=1).tolist(),
        "norm_quartiles": np.quantile(norms, (0.25, 0.5, 0.75), axis=1).T.tolist(),
        "relative_mean": relative.tolist(),
        "paths": _about(distribution, lab.options),
        "contribution": _about(distribution * relative, lab.options),
        "contribution_of_norms": _about(distribution * norms.mean(axis=1), lab.options),
    }


def short_paths(lab: Lab) -> dict[str, Any]:
    """Training with exactly k blocks open in every mini-batch (section 4.3)."""
    run, settings = lab.run, lab.subject.stochastic_depth
    return {
        "measured_on": f"{len(lab.subject.test):,} test images, in training",
        "epochs": [line["epoch"] for line in run["epochs"]],
        "test_error_by_epoch": [line["test_error_percent"] for line in run["epochs"]],
        "open_in_training": settings and settings.num_open,
        "from_epoch": run["config"].stochastic_depth_from_epoch,
        "test_error_percent": run["summary"]["test_error_percent"],
        "stochastic_depth": settings is not None,
        "paths_in_training": path_lengths(lab).get("paths_in_training"),
    }


def gradient_magnitude(lab: Lab) -> dict[str, Any]:
    """Mean magnitude of the first convolution's gradient by epoch."""
    lines = lab.run["epochs"]
    return {
        "measured_on": "all training images, in training",
        "epochs": [line["epoch"] for line in lines],
        "learning_rate": [line["learning_rate"] for line in lines],
        "first_gradient": [line["first_gradient"] for line in lines],
    }


def layer_responses(lab: Lab) -> dict[str, Any]:
    """Standard deviation of every layer's output."""
    images, moments = lab.response_moments()
    found = responses.standard_deviations(moments)
    return {
        "measured_on": f"{images:,} of {len(lab.subject.test):,} test images",
        "layers": list(found),
        "standard_deviation": list(found.values()),
    }


def depth_dial(lab: Lab) -> dict[str, Any]:
    """Error by the number of open blocks, for three ways to choose which to close.

    "survival": the least likely to survive first, which at constant depth, as under
    the linear rule, is from the last block on; "damage": those that cost least when
    they are deleted alone; "random".
    """
    ranking = lab.survival
    if ranking is None:
        ranking = -np.arange(lab.num_blocks, dtype=float)
    orders: dict[str, list] = {
        "survival": [lesion.closing_order(ranking, lab.blocks)],
        "damage": [lesion.closing_order(lab.damage, lab.blocks)],
    }
    rng, (closing,) = lab.rng("depth_dial"), orders["survival"]
    orders["random"] = [rng.permutation(closing) for _ in range(lab.options.draws)]
    stops = np.linspace(0, len(closing), min(DIAL_STOPS, len(closing)) + 1)
    closed = sorted({int(stop) for stop in stops})
    return {
        "measured_on": lab.test_images,
        "closed": closed,
        "open": [lab.num_blocks - k for k in closed],
        "error_percent": {
            name: [
                [lab.error(lesion.without(lab.gates, order[:k])) for order in choices]
                for k in lab.each(closed, f"depth_dial {name}")
            ]
            for name, choices in orders.items()
        },
    }


def survival_damage(lab: Lab) -> dict[str, Any]:
    """Correlation of p_l, or of depth l/L, with the damage of deleting block l."""
    place = (np.arange(lab.num_blocks) + 1) / lab.num_blocks
    by = "p_l" if lab.survival is not None else "l/L"
    x = lab.survival if lab.survival is not None else place
    marks = delete_one(lab)["blocks"]
    deletable = np.array([mark["deletable"] for mark in marks])
    inner = deletable & ~np.array([mark["transition"] for mark in marks])
    damage = np.array(lab.damage)
    return {
        "measured_on": lab.test_images,
        "by": by,
        "x": x.tolist(),
        "damage_points": damage.tolist(),
        "deletable": deletable.tolist(),
        "transition": [mark["transition"] for mark in marks],
        "spearman": _spearman(x[deletable], damage[deletable]),
        "spearman_without_transitions": _spearman(x[inner], damage[inner]),
    }


def _spearman(x, y):
    """Rank correlation and its p-value; None where one of the two does not vary."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found = stats.spearmanr(x, y)
    return {"rho": float(found.statistic), "p_value": float(found.pvalue)}


# --- Which network a study can be done on ---------------------------------------------


def _with_blocks(subject: Subject) -> str | None:
    gated = any(block.skippable for block in subject.model.blocks)
    return None if gated else "it has no block that a gate acts on"


def _with_paths(subject: Subject) -> str | None:
    several = subject.model.has_shortcuts
    return None if several else "without shortcuts it has one path only"


def _with_pairs(subject: Subject) -> str | None:
    pairs = lesion.interchangeable(subject.model.blocks, unstack(subject.variables))
    if pairs:
        return None
    return "it has no two blocks of one shape that could change places"


def _with_layers(subject: Subject) -> str | None:
    return None if subject.model.num_blocks else "it has no blocks"


def _with_run(subject: Subject) -> str | None:
    ours = subject.run is not None
    return None if ours else "weights in a file come without the log of a run"


def _with_gradients(subject: Subject) -> str | None:
    logged = subject.run is not None and "first_gradient" in subject.run["epochs"][0]
    return None if logged else "there is no log of the gradient"


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        run: measures it.
        missing: why it cannot be done on a network, as the end of a sentence; or None.
        uses: options, beside `images`, of which its numbers depend.
    """

    run: Callable[[Lab], dict[str, Any]]
    missing: Callable[[Subject], str | None]
    uses: frozenset[str] = frozenset()


_DRAWS = frozenset({"draws", "seed"})
_BOUNDS = frozenset({"bounds"})

STUDIES: Mapping[str, Study] = {
    "delete_one": Study(delete_one, _with_blocks),
    "delete_many": Study(delete_many, _with_blocks, _DRAWS),
    "permute": Study(permute, _with_pairs, _DRAWS),
    "path_lengths": Study(path_lengths, _with_paths, _BOUNDS),
    "path_gradients": Study(path_gradients, _with_paths, _DRAWS | _BOUNDS),
    "short_paths": Study(short_paths, _with_run, _BOUNDS),
    "gradient_magnitude": Study(gradient_magnitude, _with_gradients),
    "layer_responses": Study(layer_responses, _with_layers),
    "depth_dial": Study(depth_dial, _with_blocks, _DRAWS),
    "survival_damage": Study(survival_damage, _with_blocks),
}
