# SPDX-License-Identifier: Apache-2.0
"""Prints the classes that a finished run's network sees in pictures.

python -m experiments.predict --workdir=RUN IMAGE... [--top=3] [--data_dir=DIR]
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments import command, setup, subject
from experiments.feed import InMemory, test_view
from rn_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return command.exit_code(lambda: predict(_parse(argv)), interrupted="Interrupted.")


def _parse(argv):
    parser = command.Parser(__doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a finished run")
    add("--top", type=int, default=3, help="classes to print of each picture")
    add("--data_dir", help="of the data set; default: the run's")
    add("images", nargs="+", metavar="IMAGE", help="a picture's file")
    return parser.parse_args(argv)


def predict(options: argparse.Namespace) -> None:
    """Prints a line for each picture: its most likely classes and their probabilities.

    Args:
        options: as `_parse` gives them.

    Raises:
        InputError: no finished run, or a file that is no picture.
    """
    run = subject.finished(options.workdir, data_dir=options.data_dir)
    config, experiment = run.config, run.experiment
    spec = setup.dataset_spec(config["dataset"])
    if not 1 <= options.top <= spec.num_classes:
        raise InputError(
            f"--top must be between 1 and {spec.num_classes}, not {options.top}."
        )
    pixels = np.stack([_view(file, config, experiment) for file in options.images])
    probabilities = subject.make_probabilities(run)(pixels[:, None])
    names = spec.class_names or range(spec.num_classes)
    for file, found in zip(options.images, probabilities, strict=True):
        best = np.argsort(-found, kind="stable")[: options.top]
        told = ", ".join(f"{names[k]} {100 * found[k]:.2f} %" for k in best)
        print(f"{file}: {told}")


def _view(
    file: str, config: Mapping[str, Any], experiment: setup.Experiment
) -> np.ndarray:
    """A picture as uint8[H, W, C] of the size and colours that the network takes."""
    height, width, channels = experiment.image_shape
    try:
        with Image.open(file) as picture:
            upright = ImageOps.exif_transpose(picture)
            upright = upright.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # whatever a damaged picture makes Pillow raise
        reason = "is no picture"
        if isinstance(error, OSError) and not isinstance(error, UnidentifiedImageError):
            reason = f"cannot be read ({error.strerror or error})"
        raise InputError(f"{file} {reason}: take a PNG or JPEG.") from error
    if not isinstance(experiment.feed, InMemory):
        resize, size = config["eval_resize"], config["eval_size"]
        return test_view(np.array(upright), crops="center", resize=resize, size=size)
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC)
    return np.array(fitted).reshape(height, width, channels)


if __name__ == "__main__":
    sys.exit(main())
