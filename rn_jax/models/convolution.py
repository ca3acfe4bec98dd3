# SPDX-License-Identifier: Apache-2.0
"""Two-dimensional convolution whose gradients stay fast inside control flow.

XLA's CPU compiler rewrites convolutions for its fast kernel only in the entry
computation. Inside the body of a scan or a conditional, the gradients that autodiff
writes keep unusual dimension orders and fall to a naive loop, 9 to 100 times slower.
On the CPU `conv2d` writes both gradients as ordinary NHWC x HWIO convolutions of
transposed operands. GPUs and TPUs keep autodiff's form, in which cuDNN recognises the
usual gradient kernels.
"""

from functools import partial

import jax
from jax import lax
from jax.typing import ArrayLike

from rn_jax.errors import InputError

_in_nhwc = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))

Padding = tuple[tuple[int, int], tuple[int, int]]


def conv2d(
    x: ArrayLike,
    kernel: ArrayLike,
    *,
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
    groups: int = 1,
    gradient: str = "auto",
) -> jax.Array:
    """Return the cross-correlation of images with kernels: the papers' convolution.

    Args:
        x: images f[B, H, W, C].
        kernel: f[h, w, C / groups, D], with the dtype of `x`.
        stride: step of the window in both directions.
        padding: rows of zeros (above, below) and columns of zeros (left, right).
        groups: number of feature groups (AlexNet, ResNeXt).
        gradient: "auto", reverse mode only, fast inside scans and conditionals; or
            "xla", the rule of autodiff, for forward mode (`jvp`, `jacfwd`).

    Returns:
        f[B, H', W', D].

    Raises:
        InputError: `gradient` is neither "auto" nor "xla".
    """
    if gradient == "xla":
        return _conv(x, kernel, stride, padding, groups)
    if gradient == "auto":
        return _conv_with_rule(x, kernel, stride, padding, groups)
    raise InputError(f'conv gradient must be "auto" or "xla", not {gradient!r}.')


def _conv(x, kernel, stride, padding, groups):
    return _in_nhwc(x, kernel, (stride, stride), padding, feature_group_count=groups)


def _forward(x, kernel, stride, padding, groups):
    return _conv(x, kernel, stride, padding, groups), (x, kernel)


def _backward(stride, padding, groups, residuals, g):
    return lax.platform_dependent(
        *residuals,
        g,
        cpu=partial(_transposed_gradients, stride, padding, groups),
        default=partial(_autodiff_gradients, stride, padding, groups),
    )


_conv_with_rule = jax.custom_vjp(_conv, nondiff_argnums=(2, 3, 4))
_conv_with_rule.defvjp(_forward, _backward)


def _autodiff_gradients(stride, padding, groups, x, kernel, g):
    return jax.vjp(lambda x, w: _conv(x, w, stride, padding, groups), x, kernel)[1](g)


def _transposed_gradients(stride, padding, groups, x, kernel, g):
    """Return both gradients as convolutions in the NHWC x HWIO form."""
    conv = partial(_in_nhwc, feature_group_count=groups)
    window = kernel.shape[:2]
    reach = [(n - 1) * stride + 1 for n in g.shape[1:3]]  # of g dilated by the stride
    sides = list(zip(x.shape[1:3], window, reach, padding, strict=True))

    # d loss / d x: the flipped kernel over g, dilated by the stride.
    flipped = kernel[::-1, ::-1].reshape(*kernel.shape[:3], groups, -1)
    flipped = flipped.swapaxes(2, 4).reshape(*window, -1, x.shape[3])
    around = [(k - 1 - low, n + low - r) for n, k, r, (low, _) in sides]
    dx = conv(g, flipped, (1, 1), around, lhs_dilation=(stride, stride))

    # d loss / d kernel: images correlated with g, the batch in the role of channels.
    images = x.reshape(*x.shape[:3], groups, -1).transpose(4, 1, 2, 3, 0)
    images = images.reshape(*images.shape[:3], -1)
    kernel = g.transpose(1, 2, 0, 3)
    around = [(low, k - 1 + r - n - low) for n, k, r, (low, _) in sides]
    dw = conv(images, kernel, (1, 1), around, rhs_dilation=(stride, stride))
    return dx, dw.transpose(1, 2, 0, 3)
