# SPDX-License-Identifier: Apache-2.0
"""BatchNorm that keeps one array for its backward pass, no normalisation, and LRN."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return scale * (x - mean) / std + bias by the batch's own statistics.

    This is algorithm 1 of Ioffe and Szegedy 2015. The derivative is a function of the
    normalised images, so that these alone are kept for the backward pass, besides
    numbers per channel. Mean and variance come from sums of differences from one pixel,
    because E[x^2] - E[x]^2 loses precision if the mean is large.

    Args:
        x: f[B, H, W, C].
        scale, bias: f32[C].
        epsilon: constant added to the variance.
        axis_name: axis of the devices that share the statistics.

    Returns:
        (result with the dtype of `x`, mean f32[C], biased variance f32[C]). Statistics
        are for the moving averages and pass no gradient.
    """
    normalized, _, mean, var = _normalize(x, epsilon, axis_name)
    return _affine(normalized, scale, bias, x.dtype), mean, var


@batch_norm.defjvp
def _batch_norm_jvp(epsilon, axis_name, primals, tangents):
    x, scale, bias = primals
    dx, dscale, dbias = tangents
    normalized, rsqrt, mean, var = _normalize(x, epsilon, axis_name)
    y = _affine(normalized, scale, bias, x.dtype)
    dx, dscale, dbias = (t.astype(normalized.dtype) for t in (dx, dscale, dbias))
    # Numbers per channel are combined before they meet the images. The transpose is
    # then a function of sum(g) and sum(g * normalized), which are also the gradients of
    # bias and scale, and the backward pass reads the images once for all four.
    factor = scale.astype(normalized.dtype) * rsqrt
    per_channel = jnp.stack([dbias, dscale])
    per_channel -= factor[None] * _means(dx, normalized * dx, axis_name=axis_name)
    offset, slope = _along_examples(per_channel, len(x))
    dy = _along_channels(factor) * dx + slope * normalized + offset
    zeros = jnp.zeros_like(mean)
    return (y, mean, var), (dy.astype(x.dtype), zeros, zeros)


def _normalize(x, epsilon, axis_name):
    x = x.astype(at_least_float32(x.dtype))
    mean, var = _moments(x, axis_name)
    # Named before their use, so that rematerialisation can keep them.
    mean, rsqrt = checkpoint_name((mean, lax.rsqrt(var + epsilon)), "statistics")
    normalized = (x - _along_channels(mean)) * _along_channels(rsqrt)
    return normalized, rsqrt, mean, var


def _affine(normalized, scale, bias, dtype):
    scale, bias = scale.astype(normalized.dtype), bias.astype(normalized.dtype)
    y = _along_channels(scale) * normalized + _along_channels(bias)
    return y.astype(dtype)


def _along_channels(vector):
    """Reshape f[C] -> f[1, 1, 1, C], the rank of images."""
    return vector.reshape(1, 1, 1, -1)


def at_least_float32(dtype: Any) -> Any:
    """Return the dtype for sums of floating-point numbers of a dtype."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def _moments(x, axis_name):
    """Return mean and biased variance, f[C], with one exchange between devices."""
    # Both sums are of differences from one pixel, in one pass over the images. It is in
    # the middle, because padding changes those at the edge.
    origin = x[0, x.shape[1] // 2, x.shape[2] // 2]
    differences = x - _along_channels(origin)
    mean, square = _means(differences, lax.square(differences))
    mean, var = origin + mean, jnp.maximum(square - lax.square(mean), 0)
    if axis_name is None:
        return mean, var
    means, variances = lax.all_gather(jnp.stack([mean, var]), axis_name, axis=1)
    mean = means.mean(axis=0)
    return mean, (variances + lax.square(means - mean[None])).mean(axis=0)


def _means(*images, axis_name=None):
    """Return the means over batch and pixels: f[B, H, W, C] each -> f[n, C].

    One pass over the images sums the pixels of each example, and a second, small one
    sums the examples.
    """
    sums = jnp.stack([x.sum(axis=(1, 2)) for x in images]).sum(axis=1)
    means = sums / math.prod(images[0].shape[:3])
    return means if axis_name is None else lax.pmean(means, axis_name)


def _along_examples(vectors, size):
    """Broadcast f[n, C] -> n of f[B, 1, 1, C]; the transpose sums as `_means` does."""
    shape = (len(vectors), size, vectors.shape[-1])
    return jnp.broadcast_to(vectors[:, None], shape)[:, :, None, None]


class BatchNorm(nn.Module):
    """BatchNorm over batch and pixels (Ioffe and Szegedy 2015).

    Attributes:
        use_running_average: normalise by the moving averages, as at test, instead of
            the batch's own statistics.
        momentum: weight of the old average; Torch's 0.1 is 0.9 here.
        epsilon: constant added to the variance.
        axis_name: axis of the devices over which statistics are synchronised.
        dtype: dtype of the result; None uses that of the input.
        scale_init: initialiser of gamma, 1 in the papers.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = None
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise f[B, H, W, C]; in training, update the moving averages."""
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        dtype = x.dtype if self.dtype is None else self.dtype
        if self.use_running_average:
            wide = at_least_float32(dtype)
            factor = scale * lax.rsqrt(var.value + self.epsilon)
            offset = bias - mean.value * factor
            factor, offset = factor.astype(wide), offset.astype(wide)
            y = x.astype(wide) * _along_channels(factor) + _along_channels(offset)
            return y.astype(dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        y, *moments = batch_norm(x.astype(dtype), scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            for average, new in zip((mean, var), moments, strict=True):
                new = new.astype(average.value.dtype)
                keep = self.momentum
                average.value = keep * average.value + (1 - keep) * new
        return y


class Identity(nn.Module):
    """No normalisation: `norm=Identity` makes a network without BatchNorm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x."""
        return x


def local_response_norm(
    x: jax.Array,
    *,
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
    groups: int = 1,
) -> jax.Array:
    """Return x_i / (k + alpha * sum of x_j^2 over `size` channels j about i) ^ beta.

    By default it has the constants of Krizhevsky et al. 2012, section 3.3. (Caffe and
    Torch divide alpha by `size`.)

    Args:
        x: f[B, H, W, C].
        size: number of channels in the sum, fewer at the ends.
        k, alpha, beta: constants of the formula.
        groups: number of groups of channels that are normalised separately (towers).
    """
    squares = lax.square(x.astype(at_least_float32(x.dtype)))
    squares = squares.reshape(*x.shape[:-1], groups, -1)
    around = ((0, 0),) * 4 + ((size // 2, (size - 1) // 2),)
    window, steps = (1, 1, 1, 1, size), (1,) * 5
    zero = np.zeros((), squares.dtype)  # gradients need a concrete value
    total = lax.reduce_window(squares, zero, lax.add, window, steps, around)
    return x * ((k + alpha * total.reshape(x.shape)) ** -beta).astype(x.dtype)
