# SPDX-License-Identifier: Apache-2.0
"""BatchNorm, which keeps one array for the backward pass, and AlexNet's LRN."""

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
    """Normalises by the batch's own statistics: scale * (x - mean) / std + bias.

    Its derivative is written in terms of the normalised images, so that these alone are
    kept for the backward pass, beside numbers per channel. The variance is taken about
    the mean: E[x^2] - E[x]^2 loses its digits where the mean is large.

    Args:
        x: f[B, H, W, C].
        scale, bias: f32[C].
        epsilon: added to the variance.
        axis_name: devices over which the statistics are taken together.

    Returns:
        The result, of the dtype of `x`; mean and biased variance, f32[C]. Statistics
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
    along = normalized * _along_channels(_mean(normalized * dx, axis_name))
    centred = dx - _along_channels(_mean(dx, axis_name))
    dnormalized = _along_channels(rsqrt) * (centred - along)
    scale, dscale, dbias = map(_along_channels, (scale, dscale, dbias))
    dy = scale.astype(normalized.dtype) * dnormalized + dscale * normalized + dbias
    zeros = jnp.zeros_like(mean)
    return (y, mean, var), (dy.astype(x.dtype), zeros, zeros)


def _normalize(x, epsilon, axis_name):
    x = x.astype(at_least_float32(x.dtype))
    # Named before they are used: rematerialisation keeps what has the name.
    mean, var = checkpoint_name(_moments(x, axis_name), "statistics")
    rsqrt = lax.rsqrt(var + epsilon)
    normalized = (x - _along_channels(mean)) * _along_channels(rsqrt)
    return normalized, rsqrt, mean, var


def _affine(normalized, scale, bias, dtype):
    scale, bias = scale.astype(normalized.dtype), bias.astype(normalized.dtype)
    y = _along_channels(scale) * normalized + _along_channels(bias)
    return y.astype(dtype)


def _along_channels(vector):
    """f[C] -> f[1, 1, 1, C]: of the rank of the images that it is combined with."""
    return vector.reshape(1, 1, 1, -1)


def at_least_float32(dtype: Any) -> Any:
    """The dtype in which sums of such numbers are taken."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def _moments(x, axis_name):
    """Mean and biased variance; the devices meet once, not for each of the two."""
    mean = x.mean(axis=(0, 1, 2))
    var = lax.square(x - _along_channels(mean)).mean(axis=(0, 1, 2))
    if axis_name is None:
        return mean, var
    means, variances = lax.all_gather(jnp.stack([mean, var]), axis_name, axis=1)
    mean = means.mean(axis=0)
    return mean, (variances + lax.square(means - mean[None])).mean(axis=0)


def _mean(x, axis_name):
    mean = x.mean(axis=(0, 1, 2))
    return mean if axis_name is None else lax.pmean(mean, axis_name)


class BatchNorm(nn.Module):
    """BatchNorm over batch and pixels (Ioffe and Szegedy 2015).

    Moving averages are kept for use at test.

    Attributes:
        use_running_average: normalise by the moving averages instead of the batch.
        momentum: weight of the old average; Torch's 0.1 is 0.9 here.
        epsilon: added to the variance.
        axis_name: devices over which statistics are synchronised.
        dtype: of the result; None takes that of the input.
        scale_init: of gamma, 1 in the papers.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = None
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B, H, W, C] -> f[B, H, W, C]."""
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
        y, *found = batch_norm(x.astype(dtype), scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            for average, new in zip((mean, var), found, strict=True):
                new = new.astype(average.value.dtype)
                keep = self.momentum
                average.value = keep * average.value + (1 - keep) * new
        return y


def local_response_norm(
    x: jax.Array,
    *,
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
    groups: int = 1,
) -> jax.Array:
    """x_i / (k + alpha * sum of x_j^2 over `size` channels about i) ^ beta.

    Krizhevsky et al. 2012, section 3.3, with the paper's constants. (Caffe and Torch
    divide alpha by `size`.)

    Args:
        x: f[B, H, W, C].
        size: channels of the sum, fewer at the ends.
        k, alpha, beta: as in the formula.
        groups: parts of the channels that are normalised apart, as two towers are.
    """
    squares = lax.square(x.astype(at_least_float32(x.dtype)))
    squares = squares.reshape(*x.shape[:-1], groups, -1)
    around = ((0, 0),) * 4 + ((size // 2, (size - 1) // 2),)
    window, steps = (1, 1, 1, 1, size), (1,) * 5
    zero = np.zeros((), squares.dtype)  # known while tracing: gradients need that
    total = lax.reduce_window(squares, zero, lax.add, window, steps, around)
    return x * ((k + alpha * total.reshape(x.shape)) ** -beta).astype(x.dtype)
