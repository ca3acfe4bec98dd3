# SPDX-License-Identifier: Apache-2.0
"""The mean and standard deviation that images are normalised with."""

import dataclasses

import numpy as np

from rn_jax.data.in_memory import Examples
from rn_jax.errors import InputError

# Mean and standard deviation of ImageNet's channels, for pixels from 0 to 1.
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STATISTICS = ("channel", "mean_image", "unit", "imagenet", "imagenet_mean")
NORMALIZATIONS = (*_STATISTICS, "contrast")  # the last is computed per image


@dataclasses.dataclass(frozen=True, eq=False)
class Normalization:
    """Float32 `mean` and `std` of pixel values 0..255.

    Both broadcast against [H, W, C].
    """

    mean: np.ndarray | np.float32
    std: np.ndarray | np.float32


def normalization(examples: Examples, kind: str) -> Normalization:
    """Return the mean and standard deviation to normalise with.

    The sums are exact integers; only the last division and root are rounded.

    Args:
        examples: the training examples (without the validation part).
        kind:
            "channel": mean and std of each channel, both float32[C].
            "mean_image": the mean image, float32[H, W, C], and one std, float32[], as
            in the code of Huang et al. 2016, which takes the std over all pixel values
            *before* subtracting the mean image. It is therefore the deviation from the
            overall mean, and normalised images have a std somewhat below 1.
            "unit": 0 and 255, as in DenseNet on SVHN.
            "imagenet": mean and std of ImageNet's channels, whatever the examples, as
            trained networks of PyTorch projects expect.
            "imagenet_mean": the same mean and a std of 1, as in Caffe's code.

    Raises:
        InputError: `kind` is unknown, or there are no examples.
    """
    mean, std = (255 * np.array(values, np.float32) for values in _IMAGENET)
    fixed = {
        "unit": Normalization(np.float32(0), np.float32(255)),
        "imagenet": Normalization(mean, std),
        "imagenet_mean": Normalization(mean, np.float32(1)),
    }
    if kind in fixed:
        return fixed[kind]
    if kind not in ("channel", "mean_image"):
        raise InputError(
            f"Unknown normalization {kind!r}: known: {', '.join(_STATISTICS)}."
        )
    n = len(examples)
    if n == 0:
        raise InputError("There are no examples to take a mean of.")
    shape = examples.images.shape[1:]
    total, squares = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for start in range(0, n, 1024):  # 1024 * 255**2 fits uint32
        chunk = examples.images[start : start + 1024].astype(np.uint32)
        total += chunk.sum(axis=0, dtype=np.uint32)
        squares += np.square(chunk).sum(axis=0, dtype=np.uint32)
    axes = (0, 1) if kind == "channel" else (0, 1, 2)
    count = n * total.size // total.sum(axis=axes).size
    overall_mean = total.sum(axis=axes) / count
    std = np.sqrt(squares.sum(axis=axes) / count - overall_mean**2)
    return Normalization(
        mean=(overall_mean if kind == "channel" else total / n).astype(np.float32),
        std=np.where(std > 0, std, 1).astype(np.float32),  # 1 where nothing varies
    )
