# SPDX-License-Identifier: Apache-2.0
"""Layers shared by several families: convolution, shortcuts and pooling."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from rn_jax.errors import InputError, must_be
from rn_jax.models.convolution import conv2d
from rn_jax.models.normalization import at_least_float32

ModuleDef = Callable[..., nn.Module]

# N(0, 2 / (k^2 C_out)), as in the papers' Torch code (He et al. 2015b).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# U(-1 / sqrt(C_in), 1 / sqrt(C_in)), Torch's rule for fully connected layers.
torch_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# Initial kernels of convolutions by a network's setting `kernel_init`.
KERNEL_INITS = {
    "he_normal": nn.initializers.he_normal(),  # He et al. 2015b, equation 10
    "xavier_normal": nn.initializers.glorot_normal(),  # Glorot and Bengio 2010, eq. 12
    "small_normal": nn.initializers.normal(0.01),  # Krizhevsky et al. 2012
}


class Conv(nn.Module):
    """Convolution padded with zeros on every side.

    With stride 2 a 3x3 window is padded on both sides, as in the papers' Torch code;
    "SAME" would pad one side alone.

    Attributes:
        features: channels of the output.
        kernel_size: side of a square window, or its height and width.
        stride: step of the window.
        groups: number of feature groups.
        padding: rows and columns of zeros on each side; None: half of the window's
            height and width, rounded down.
        use_bias: whether to add a bias.
        gradient: rule of the gradient; see `conv2d`.
        dtype: dtype of the computation; None uses that of the operands.

    Raises:
        InputError: the input is not [B, H, W, C], has another number of channels than
            the kernel, or is smaller than the window.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    stride: int = 1
    groups: int = 1
    padding: int | None = None
    use_bias: bool = False
    gradient: str = "auto"
    dtype: Any = None
    kernel_init: Callable = he_normal_fan_out
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve: f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        if x.ndim != 4:
            raise InputError(f"Images must be [B, H, W, C], not of shape {x.shape}.")
        channels, size = x.shape[-1], self.kernel_size
        window = (size, size) if isinstance(size, int) else size
        if self.has_variable("params", "kernel"):
            expected = self.get_variable("params", "kernel").shape[2] * self.groups
            if channels != expected:
                raise InputError(
                    f"The convolution {'/'.join(self.path)} takes {expected} channels, "
                    f"but its input of shape {x.shape} has {channels}."
                )
        padding = [n // 2 if self.padding is None else self.padding for n in window]
        least = max(n - 2 * around for n, around in zip(window, padding, strict=True))
        if min(x.shape[1:3]) < least:
            raise InputError(
                f"The convolution {'/'.join(self.path)} takes images of at least "
                f"{least} pixels a side, but its input has the shape {x.shape}."
            )
        shape = (*window, channels // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv2d(
            x,
            kernel,
            stride=self.stride,
            padding=((padding[0],) * 2, (padding[1],) * 2),
            groups=self.groups,
            gradient=self.gradient,
        )
        y = y if bias is None else y + bias.reshape(1, 1, 1, -1)
        return checkpoint_name(y, "conv")  # kept by `remat="cheap"`


class Shortcut(nn.Module):
    """The three shortcuts of He et al. 2015, section 4.1, option A in three variants.

    Attributes:
        kind: the function where a block changes the shape, else the identity:
            "A": every stride-th pixel, zero channels appended (fb.resnet.torch);
            "A_centered": the same, half of the zero channels on either side;
            "A_pooled": 2x2 average pooling, zero channels appended (Huang et al. 2016);
            "B": 1x1 convolution and BatchNorm;
            "B_linear": the convolution alone (pre-activation networks);
            "C": as B, in every block.
        features: channels of the output.
        stride: stride of the block.
        conv, norm: as in `Block`.

    Raises:
        InputError: `kind` is unknown, or option A would have to drop channels.
    """

    kind: str | None
    features: int
    stride: int
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return h(x): f[B, H, W, C] -> f[B, H / stride, W / stride, features]."""
        if self.kind not in SHORTCUTS:
            raise must_be("shortcut", f"one of {', '.join(SHORTCUTS)}", self.kind)
        same_shape = self.stride == 1 and x.shape[-1] == self.features
        if same_shape and self.kind != "C":
            return x
        if self.kind in PROJECTIONS:
            x = self.conv(self.features, 1, self.stride, name="conv")(x)
            return x if self.kind == "B_linear" else self.norm(name="bn")(x)
        if self.kind == "A_pooled":
            # For odd sizes the branch's convolution returns ceil(H / stride).
            x = average_pool(x, self.stride, self.stride, ceil_mode=True)
        else:
            x = x[:, :: self.stride, :: self.stride]
        return pad_channels(x, self.features, centered=self.kind == "A_centered")


PROJECTIONS = ("B", "B_linear", "C")
SHORTCUTS = ("A", "A_centered", "A_pooled", *PROJECTIONS)


def max_pool(
    x: jax.Array, size: int, stride: int, padding: int = 0, *, ceil_mode: bool = False
) -> jax.Array:
    """Return the largest value of every window: f[B, H, W, C] -> f[B, H', W', C].

    As in Torch's MaxPool2d, H' = floor((H + 2 padding - size) / stride) + 1. Torch
    rejects an image smaller than the window, as small images become in networks for
    large ones; here the window shrinks to the image and H' is 1.

    Args:
        x: f[B, H, W, C].
        size: side of the window.
        stride: step of the window.
        padding: rows and columns of -inf on each side.
        ceil_mode: round H' up instead of down (Caffe; Torch's `ceil_mode`): the last
            window may reach past the border if it starts inside the image.
    """
    window, around = _windows(x, size, stride, padding, ceil_mode)
    return nn.max_pool(x, window, (stride, stride), padding=around)


def average_pool(
    x: jax.Array, size: int, stride: int, padding: int = 0, *, ceil_mode: bool = False
) -> jax.Array:
    """Return the mean of every window: f[B, H, W, C] -> f[B, H', W', C].

    The shape is that of `max_pool`. A window that reaches past the border is averaged
    over its pixels inside (Torch's AvgPool2d with `count_include_pad=False`,
    TensorFlow's). Sums are in at least float32.

    Args:
        x: f[B, H, W, C].
        size: side of the window.
        stride: step of the window.
        padding, ceil_mode: as in `max_pool`.
    """
    window, around = _windows(x, size, stride, padding, ceil_mode)
    # The counts of nn.avg_pool, and so its means, have JAX's default dtype.
    wide = x.astype(at_least_float32(x.dtype))
    counts, sums = (
        nn.pool(y, 0.0, lax.add, window, (stride, stride), around)
        for y in (jnp.ones((1, *x.shape[1:3], 1), wide.dtype), wide)
    )
    return (sums / counts).astype(x.dtype)


def _windows(x, size, stride, padding, ceil_mode):
    """Return the window (h, w) and the padding for `nn.max_pool`."""
    window, around = [], []
    for n in x.shape[1:3]:
        k = min(size, n + 2 * padding)
        rest = -(n + 2 * padding - k) % stride if ceil_mode else 0
        # Drop a last window that would start past the image.
        rest = 0 if rest >= k - padding else rest
        window.append(k)
        around.append((padding, padding + rest))
    return tuple(window), around


def adaptive_average_pool(x: jax.Array, size: int) -> jax.Array:
    """Return the means of s x s cells, s = `size`: f[B, H, W, C] -> f[B, s, s, C].

    Cell i spans the pixels floor(i H / s) to ceil((i + 1) H / s) - 1. Cells overlap if
    s does not divide H, and repeat pixels if H is below s (Torch's AdaptiveAvgPool2d).
    """
    for axis in (1, 2):
        n = x.shape[axis]
        if n == size:
            continue
        cell, pixel = np.arange(size)[:, None], np.arange(n)
        inside = (pixel >= cell * n // size) & (pixel < -(-(cell + 1) * n // size))
        weights = (inside / inside.sum(axis=1, keepdims=True)).astype(x.dtype)
        mean = jnp.tensordot(x, weights, (axis, 1), precision=lax.Precision.HIGHEST)
        x = jnp.moveaxis(mean, -1, axis)
    return x


def windows(x: jax.Array, size: int) -> jax.Array:
    """Return all windows of s x s pixels, s = `size`, each as `flat` orders it.

    A fully connected layer on the result, f[B, H - s + 1, W - s + 1, s * s * C], is a
    convolution of f[B, H, W, C] without padding.

    Raises:
        InputError: the image is smaller than a window.
    """
    rows, columns = (n - size + 1 for n in x.shape[1:3])
    if min(rows, columns) < 1:
        raise InputError(
            f"The fully connected layers take maps of at least {size} pixels a side, "
            f"but their input has the shape {x.shape}: use larger images."
        )
    places = [(i, j) for i in range(size) for j in range(size)]
    shifted = [x[:, i : i + rows, j : j + columns] for i, j in places]
    return jnp.concatenate(shifted, axis=-1)


def flat(x: jax.Array) -> jax.Array:
    """Return each example as a row: f[B, ...] -> f[B, N], even if B is 0."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def pad_channels(x: jax.Array, features: int, *, centered: bool) -> jax.Array:
    """Append zero channels: f[B, H, W, C] -> f[B, H, W, features].

    Args:
        x: f[B, H, W, C].
        features: number of channels of the result.
        centered: whether to put half of the zeros in front.

    Raises:
        InputError: `x` has more than `features` channels.
    """
    extra = features - x.shape[-1]
    if extra < 0:
        raise InputError(
            f"Shortcut A cannot go from {x.shape[-1]} to {features} channels; "
            "use shortcut B or C."
        )
    before = extra // 2 if centered else 0
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, extra - before)))
