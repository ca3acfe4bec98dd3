# SPDX-License-Identifier: Apache-2.0
"""Evaluation between the steps of training and after it, and BatchNorm's statistics."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rn_jax import metrics, parallel, train
from rn_jax.data import Feed
from rn_jax.data.batches import Batch
from rn_jax.models.network import Network

# Steps handed to the devices before the host waits for the first of them.
IN_FLIGHT = 4


class EvalSteps(NamedTuple):
    """The compiled steps of an evaluation.

    Attributes:
        evaluate: (variables, batch) -> sums.
        statistics: (variables, batch, number) -> batch_stats, see
            `train.make_statistics_step`.
    """

    evaluate: Callable
    statistics: Callable


def make_eval_steps(
    model: Network, preprocess: Callable, devices: Sequence[jax.Device], mode: str
) -> EvalSteps:
    """Make and compile the steps for a network; `mode` is one of `parallel.MODES`."""
    parts: dict[str, Any] = {"model": model, "preprocess": preprocess}
    parts["axis_name"] = parallel.axis_name(devices)
    statistics = train.make_statistics_step(**parts)
    return EvalSteps(
        parallel.compile_eval_step(train.make_eval_step(**parts), devices, mode=mode),
        parallel.compile_statistics_step(statistics, devices, mode=mode),
    )


def evaluate(
    steps: EvalSteps, state: train.TrainState, batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the mean loss in nats and the error in percent over some batches."""
    found = []
    for batch in batches:
        found.append(steps.evaluate(state.variables, batch))
        jax.block_until_ready(found[-IN_FLIGHT:][0])
    total: Any = collections.Counter()
    for sums in jax.device_get(found):
        total.update({name: float(value) for name, value in sums.items()})
    return metrics.means(total)


def measure(
    steps: EvalSteps, state: train.TrainState, feed: Feed, batch_size: int
) -> dict[str, float]:
    """Return what an evaluation adds to metrics.jsonl.

    That is loss and error of training, since the last evaluation, and of the feed's
    parts "val" and "test". For a network with blocks it is also "open_blocks", the mean
    number of open blocks so far, and "first_gradient", see `train.TrainState.sums`.
    """
    sums = jax.device_get(state.sums)
    means = {"train": metrics.means(sums)}
    for part in ("val", "test"):
        if part in feed.parts:
            batches = feed.eval_batches(part, batch_size=batch_size)
            means[part] = evaluate(steps, state, batches)
    line = {f"{p}_{name}": value for p in means for name, value in means[p].items()}
    opened = np.asarray(state.open_counts)
    if len(opened):
        line["open_blocks"] = float(opened.sum() / int(state.step))
        line["first_gradient"] = float(sums["gradient"] / sums["count"])
    return line


def with_exact_statistics(
    steps: EvalSteps, state: train.TrainState, batches: Iterable[Batch]
) -> train.TrainState:
    """Return the state with BatchNorm's statistics over some training batches.

    They are those of the network that is evaluated. The steps of training that follow
    are unaffected: they normalise by the statistics of their own batch.
    """
    variables = state.variables
    for number, batch in enumerate(batches, start=1):
        stats = steps.statistics(variables, batch, np.float32(number))
        variables = {**variables, "batch_stats": stats}
    if state.ema:
        return state.replace(ema=variables)
    return state.replace(batch_stats=variables["batch_stats"])


def better(
    best: Mapping[str, Any] | None, line: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return what is kept of an evaluation if it is the best so far, else None.

    `best` is what was kept before, and `line` is the evaluation's in metrics.jsonl.
    """
    error = line.get("val_error_percent")
    if error is None or (best is not None and error > best["val_error_percent"]):
        return None
    names = ("epoch", "val_error_percent", "test_error_percent")
    return {name: line[name] for name in names}


# --- A finished run's network ---------------------------------------------------------


def top_error(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the percentage of examples whose class has none of the k highest scores.

    `scores` are float[N, K] and `labels` int[N]; k is 1 or 5 in the papers.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]  # breaks ties as argmax
    rank = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return 100 * float(np.mean((rank >= k) | ~np.isfinite(own[:, 0])))


def by_batch(batches: Iterable, probabilities: Callable):
    """Return int[N] labels and float[N, K] scores of images with views of one shape."""
    labels, scores = [], []
    for batch in batches:
        found = probabilities(batch["image"])
        labels.append(batch["label"][batch["mask"]])
        scores.append(found[batch["mask"]])
    return np.concatenate(labels), np.concatenate(scores)


def by_shape(batches: Iterable, total: int, size: int, probabilities: Callable):
    """Return int[N] labels and float[N, K] mean scores of views of different shapes.

    Views of one shape are collected until they fill a batch.

    Args:
        batches: batches of 1 image each, with a list of views.
        total: number of images, which is that of batches.
        size: views per batch of the network.
        probabilities: the function that `trained.make_probabilities` returns.
    """
    labels: list[int] = []
    sums, count = np.zeros((total, 0)), 1

    def add(places, views):
        nonlocal sums
        filled = views + [np.zeros_like(views[0])] * (size - len(views))
        found = probabilities(np.stack(filled))
        sums = sums if sums.size else np.zeros((total, found.shape[1]))
        np.add.at(sums, places, found[: len(views)])

    waiting: collections.defaultdict[tuple[int, ...], tuple[list, list]]
    waiting = collections.defaultdict(lambda: ([], []))
    for batch in batches:
        if not batch["mask"][0]:  # a damaged record
            continue
        count = len(batch["image"])
        for view in batch["image"]:
            places, views = waiting[view.shape]
            places.append(len(labels))
            views.append(view[0])
            if len(views) == size:
                add(*waiting.pop(view.shape))
        labels.append(batch["label"][0])
    for places, views in waiting.values():
        add(places, views)
    return np.array(labels), sums[: len(labels)] / count
