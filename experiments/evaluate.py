# SPDX-License-Identifier: Apache-2.0
"""Evaluate a finished run on ImageNet, with the crops that papers use.

python -m experiments.evaluate --workdir=RUN [--crops=center|ten|dense]
    [--resize=N] [--size=N] [--scales=224,256,384,480,640] [--images=N]
    [--batch_size=N] [--num_workers=N] [--data_dir=DIR]
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from etils import epath

from experiments import cli
from experiments.training import trained
from experiments.training.evaluation import by_batch, by_shape, top_error
from experiments.training.progress import bar
from rn_jax.data import imagenet, transforms
from rn_jax.errors import InputError, unknown_name
from rn_jax.filesystem import replace_file

CROPS = ("center", "ten", "dense")

# Sides of dense images are cropped to multiples of this, so that a network is compiled
# for tens of shapes instead of thousands.
_MULTIPLE = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.Parser(__doc__, evaluate).call(
        argv, interrupted="Interrupted; nothing was written."
    )


def _scales(given):
    """Return the sides, given as text or numbers, as a tuple."""
    parts = given.split(",") if isinstance(given, str) else [*map(str, given)]
    scales = [int(part) if part.isdecimal() else 0 for part in parts] or [0]
    if not all(scale and scale % _MULTIPLE == 0 for scale in scales):
        raise InputError(
            f"--scales must be multiples of {_MULTIPLE}, such as 224,256, not "
            f"{','.join(parts)}."
        )
    return tuple(scales)


def evaluate(
    workdir: cli.Path,
    *,
    crops: str = "center",
    resize: int | None = None,
    size: int | None = None,
    scales: Annotated[tuple[int, ...], _scales] = (224, 256, 384, 480, 640),
    images: int | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    data_dir: cli.Path | None = None,
) -> dict[str, Any]:
    """Print top-1 and top-5 errors, and write evaluation_CROPS.json into the run.

    Args:
        workdir: folder of a finished run.
        crops: "center", "ten" (corners and centre, also mirrored) or "dense" (the whole
            image at several scales, with fully connected layers as convolutions).
        resize: shorter side in pixels before a crop; None for the run's.
        size: side of a crop in pixels; None for the run's.
        scales: shorter sides of dense images, multiples of 32 pixels.
        images: number of images, from the first; None for all.
        batch_size: images at a time.
        num_workers: processes that read images; None for one per core.
        data_dir: folder of the data set; None for the run's.

    Returns:
        The content of evaluation_CROPS.json.

    Raises:
        InputError: the run cannot be evaluated like this; the message says why.
    """
    if crops not in CROPS:
        raise unknown_name("crops", crops, CROPS)
    cli.at_least(1, resize=resize, size=size, images=images, batch_size=batch_size)
    scales = _scales(scales)
    run = trained.finished(workdir, data_dir=data_dir, num_workers=num_workers)
    config, experiment = run.config, run.experiment
    if not isinstance(experiment.feed, imagenet.Source):
        raise InputError(
            f"The run {workdir} is on {config.dataset}, whose test images are not "
            "cropped: its summary.json has their error."
        )
    resize = resize or config.eval_resize
    side = size or config.eval_size
    dense = crops == "dense"
    if not dense and side > resize:
        raise InputError(f"A crop of {side} does not fit a shorter side of {resize}.")
    if dense:
        run = run._replace(model=run.model.for_whole_images())
    view: imagenet.EvalView = partial(
        transforms.dense_views, sizes=scales, multiple=_MULTIPLE
    )
    if not dense:
        view = partial(transforms.eval_view, crops=crops, resize=resize, size=side)
    feed = dataclasses.replace(experiment.feed, eval_view=view)
    total = len(feed.parts["test"])
    total = min(images or total, total)
    batch_size = math.ceil(batch_size / len(experiment.devices))
    batch_size *= len(experiment.devices)
    at_once = 1 if dense else batch_size
    batches = feed.eval_batches("test", batch_size=at_once, limit=total)
    probabilities = trained.make_probabilities(run)
    shown = bar(batches, total=math.ceil(total / at_once))
    if dense:
        labels, scores = by_shape(shown, total, batch_size, probabilities)
    else:
        labels, scores = by_batch(shown, probabilities)
    if not len(labels):
        raise InputError(f"None of the {total} images can be read: use more of them.")
    result = {
        "crops": crops,
        **({"scales": scales} if dense else {"resize": resize, "size": side}),
        "images": len(labels),
        "top1_error_percent": top_error(scores, labels, 1),
        "top5_error_percent": top_error(scores, labels, 5),
    }
    file = epath.Path(workdir) / f"evaluation_{crops}.json"
    replace_file(file, json.dumps(result, indent=2) + "\n")
    print(
        f"{len(labels):,} images, {crops} crops: top-1 error "
        f"{result['top1_error_percent']:.2f} %, top-5 error "
        f"{result['top5_error_percent']:.2f} %."
    )
    return result


if __name__ == "__main__":
    sys.exit(main())
