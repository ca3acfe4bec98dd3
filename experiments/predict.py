# SPDX-License-Identifier: Apache-2.0
"""Print the classes that a finished run's network sees in pictures.

python -m experiments.predict --workdir=RUN IMAGE... [--top=3] [--data_dir=DIR]
"""

import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from configs.default import Config
from experiments import cli
from experiments.pictures import read_picture
from experiments.training import setup, trained
from rn_jax.data import get_spec, transforms
from rn_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.Parser(__doc__, predict).call(argv, interrupted="Interrupted.")


def predict(
    workdir: cli.Path,
    images: Sequence[cli.Path],
    *,
    top: int = 3,
    data_dir: cli.Path | None = None,
) -> list[dict[str, float]]:
    """Print a line for each picture: its most likely classes and their probabilities.

    Args:
        workdir: folder of a finished run.
        images: pictures in any format of Pillow, with the colours of the data set
            (digits are white on black); each is cropped at its centre.
        top: number of classes for each picture.
        data_dir: folder of the data set; None: the run's.

    Returns:
        The probabilities of each picture by class name, the most likely first.

    Raises:
        InputError: there is no finished run, or a file is not a picture.
    """
    run = trained.finished(workdir, data_dir=data_dir)
    spec = get_spec(run.config.dataset)
    if not 1 <= top <= spec.num_classes:
        raise InputError(f"--top must be between 1 and {spec.num_classes}, not {top}.")
    pixels = np.stack([view(file, run.config, run.experiment) for file in images])
    probabilities = trained.make_probabilities(run)(pixels)
    names = spec.class_names or list(map(str, range(spec.num_classes)))
    results = []
    for file, found in zip(images, probabilities, strict=True):
        best = np.argsort(-found, kind="stable")[:top]
        results.append({names[k]: float(found[k]) for k in best})
        shown = (f"{name} {100 * p:.2f} %" for name, p in results[-1].items())
        print(f"{file}: {', '.join(shown)}")
    return results


def view(file: str, config: Config, experiment: setup.Experiment) -> np.ndarray:
    """Read a picture as uint8[H, W, C], with the size and colours of a run's input.

    Raises:
        InputError: as `read_picture`.
    """
    height, width, channels = experiment.image_shape
    picture = read_picture(file, channels)
    if experiment.spec.crops_on_host:
        resize, size = config.eval_resize, config.eval_size
        return transforms.eval_view(picture, crops="center", resize=resize, size=size)
    fitted = ImageOps.fit(
        Image.fromarray(picture.squeeze(-1) if channels == 1 else picture),
        (width, height),
        Image.Resampling.BICUBIC,
    )
    return np.array(fitted).reshape(height, width, channels)


if __name__ == "__main__":
    sys.exit(main())
