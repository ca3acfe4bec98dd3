# SPDX-License-Identifier: Apache-2.0
"""Errors of a finished run on ImageNet, by the crops that papers report them with.

python -m experiments.evaluate --workdir=RUN [--crops=center|ten|dense]
    [--resize=N] [--size=N] [--scales=224,256,384,480,640] [--images=N]
"""

import argparse
import collections
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from etils import epath
from tqdm import tqdm

from experiments import cli, subject
from experiments.feed import ImageNet, test_view
from experiments.workdir import replace_file
from rn_jax.data import imagenet, transforms
from rn_jax.errors import InputError
from rn_jax.models.densenet import DenseNet
from rn_jax.models.resnet import ResNet

# Sides of dense images are cut to multiples of this, so that there are few shapes.
_MULTIPLE = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return cli.exit_code(
        lambda: evaluate(_parse(argv)), interrupted="Interrupted; nothing was written."
    )


def _parse(argv):
    parser = cli.Parser(__doc__)
    add, path = parser.add_argument, parser.add_path
    path("--workdir", required=True, help="folder of a finished run")
    add("--crops", default="center", choices=("center", "ten", "dense"))
    add("--resize", type=int, help="shorter side before a crop; default: the run's")
    add("--size", type=int, help="of a crop, in pixels; default: the run's")
    add("--scales", default="224,256,384,480,640", help="shorter sides of dense images")
    add("--images", type=int, help="the first so many; default: all")
    add("--batch_size", type=int, default=64, help="images at a time")
    add("--num_workers", type=int, help="processes; default: one per core")
    path("--data_dir", help="of the data set; default: the run's")
    return parser.parse_args(argv)


def evaluate(options: argparse.Namespace) -> None:
    """Prints top-1 and top-5 errors, and writes evaluation_CROPS.json into the run.

    Args:
        options: as `_parse` gives them.

    Raises:
        InputError: what the user can mend, in one sentence.
    """
    for name in ("resize", "size", "images", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}.")
    try:
        scales = tuple(int(scale) for scale in options.scales.split(","))
    except ValueError:
        scales = ()
    if not scales or any(scale < 1 or scale % _MULTIPLE for scale in scales):
        raise InputError(
            f"--scales must be multiples of {_MULTIPLE}, as 224,256, not "
            f"{options.scales}."
        )
    run = subject.finished(
        options.workdir, data_dir=options.data_dir, num_workers=options.num_workers
    )
    config, experiment, model = run.config, run.experiment, run.model
    if not isinstance(experiment.feed, ImageNet):
        raise InputError(
            f"The run {options.workdir} is on {config.dataset}, whose test images "
            "are taken whole: its summary.json has their error."
        )
    resize = options.resize or config.eval_resize
    side = options.size or config.eval_size
    if options.crops != "dense" and side > resize:
        raise InputError(f"A crop of {side} does not fit a shorter side of {resize}.")
    dense = options.crops == "dense"
    if dense and not isinstance(model, ResNet | DenseNet):
        raise InputError(
            "--crops=dense needs a network that ends in a mean over all pixels, as "
            f"ResNets and DenseNets do, and not {config.model}."
        )
    feed = experiment.feed
    source = imagenet.Source(train=feed.parts["train"], test=feed.parts["test"])
    total = min(options.images or source.num_test, source.num_test)
    size = math.ceil(options.batch_size / len(experiment.devices))
    size *= len(experiment.devices)
    view = partial(test_view, crops=options.crops, resize=resize, size=side)
    batches = source.eval_batches(
        batch_size=1 if dense else size,
        transform=partial(dense_views, scales=scales) if dense else view,
        num_workers=feed.num_workers,
        limit=total,
    )
    probabilities = subject.make_probabilities(run)
    bar = tqdm(batches, total=math.ceil(total / (1 if dense else size)), disable=None)
    if dense:
        labels, scores = _by_shape(bar, total, size, probabilities)
    else:
        labels, scores = _by_batch(bar, probabilities)
    if not len(labels):
        raise InputError(f"None of the {total} images can be read: take more of them.")
    result = {
        "crops": options.crops,
        **({"scales": scales} if dense else {"resize": resize, "size": side}),
        "images": len(labels),
        "top1_error_percent": top_error(scores, labels, 1),
        "top5_error_percent": top_error(scores, labels, 5),
    }
    name = f"evaluation_{options.crops}.json"
    replace_file(
        epath.Path(options.workdir) / name, json.dumps(result, indent=2) + "\n"
    )
    print(
        f"{len(labels):,} images, {options.crops} crops: top-1 error "
        f"{result['top1_error_percent']:.2f} %, top-5 error "
        f"{result['top5_error_percent']:.2f} %."
    )


def dense_views(image: np.ndarray, *, scales: tuple[int, ...]) -> list[np.ndarray]:
    """The whole image and its mirror image at each scale, as `transforms.dense_views`.

    The longer side is cut to a multiple of 32 pixels in the middle: at most 31 of them
    are lost, and a network is compiled for some tens of shapes instead of thousands.

    Args:
        image: uint8[H, W, 3].
        scales: lengths of the shorter side, in pixels.
    """

    def trimmed(view):
        height, width = (side // _MULTIPLE * _MULTIPLE for side in view.shape[:2])
        top, left = (view.shape[0] - height) // 2, (view.shape[1] - width) // 2
        return view[top : top + height, left : left + width]

    return [trimmed(view) for view in transforms.dense_views(image, scales)]


def top_error(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Percent of the examples whose class is not among the k with the highest scores.

    Args:
        scores: f[N, K].
        labels: i[N].
        k: 1 or 5 in the papers.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]  # of equals, as argmax does
    rank = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return 100 * float(np.mean((rank >= k) | ~np.isfinite(own[:, 0])))


def _by_batch(batches: Iterable, probabilities: Callable):
    """Labels and scores of images that all have the same views."""
    labels, scores = [], []
    for batch in batches:
        images = batch["image"]
        found = probabilities(images if images.ndim == 5 else images[:, None])
        labels.append(batch["label"][batch["mask"]])
        scores.append(found[batch["mask"]])
    return np.concatenate(labels), np.concatenate(scores)


def _by_shape(batches: Iterable, total: int, size: int, probabilities: Callable):
    """Labels and mean scores of images whose views have several shapes.

    Views of one shape wait for each other until they fill a batch.

    Args:
        batches: of 1 image each, with a list of views.
        total: images, as many as batches.
        size: views of a batch.
        probabilities: as `subject.make_probabilities` gives it.
    """
    labels: list[int] = []
    sums, count = np.zeros((total, 0)), 1

    def add(places, views):
        nonlocal sums
        filled = views + [np.zeros_like(views[0])] * (size - len(views))
        found = probabilities(np.stack(filled)[:, None])
        sums = sums if sums.size else np.zeros((total, found.shape[1]))
        np.add.at(sums, places, found[: len(views)])

    waiting: collections.defaultdict[tuple[int, ...], tuple[list, list]]
    waiting = collections.defaultdict(lambda: ([], []))
    for batch in batches:
        if not batch["mask"][0]:  # its record is damaged
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


if __name__ == "__main__":
    sys.exit(main())
