# SPDX-License-Identifier: Apache-2.0
"""Weights for colour images on greyscale ones, and the other way round."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rn_jax.errors import InputError, whole_number

_SIDE = 256  # of the images that show which kernel reads them; enough for every stem


def with_channels(
    model: nn.Module, variables: Mapping[str, Any], channels: int
) -> dict[str, Any]:
    """Return variables of the same network for images of another number of channels.

    Only the kernel of the first convolution changes, or those of the first in each
    column of a fractal network, see `kernel_for_channels`. An image with equal channels
    has the same features as before.

    Args:
        model: the network of the variables.
        variables: its collections.
        channels: number of channels of the images; one of the old and the new number
            must be 1, unless they are equal.

    Raises:
        InputError: neither number is 1; or the network does not begin with a
            convolution.
    """
    channels = whole_number("channels", channels)

    def shapes(number):
        images = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, number), jnp.float32)
        init = partial(model.init, {"params": jax.random.key(0)}, train=False)
        return flax.traverse_util.flatten_dict(jax.eval_shape(init, images)["params"])

    one, two = shapes(1), shapes(2)
    readers = [path for path in one if one[path].shape != two[path].shape]
    if any(len(one[path].shape) != 4 for path in readers):
        raise InputError(
            f"{type(model).__name__} does not begin with a convolution, whose kernel "
            "could be adapted to other channels."
        )
    params = flax.traverse_util.flatten_dict(variables["params"])
    for path in readers:  # several in a fractal network
        params[path] = kernel_for_channels(params[path], channels)
    return {**variables, "params": flax.traverse_util.unflatten_dict(params)}


def kernel_for_channels(kernel: Any, channels: int) -> Any:
    """Return a convolution's kernel for images of another number of channels.

    For greyscale images it is summed over the channels, as in timm; for n channels,
    that of greyscale images is repeated and divided by n.

    Args:
        kernel: f[h, w, C, O].
        channels: n.

    Returns:
        f[h, w, n, O].

    Raises:
        InputError: neither C nor n is 1, and they differ.
    """
    if kernel.shape[2] == channels:
        return kernel
    if 1 not in (kernel.shape[2], channels):
        raise InputError(
            f"Weights for images of {kernel.shape[2]} channels cannot be adapted to "
            f"{channels}: name weights for {channels} channels, or for greyscale "
            "images."
        )
    numpy = np if isinstance(kernel, np.ndarray) else jnp
    return numpy.repeat(kernel.sum(2, keepdims=True), channels, 2) / channels
