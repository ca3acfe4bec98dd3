# SPDX-License-Identifier: Apache-2.0
"""Normalisation and augmentation on the device, as pure functions of a key.

Images are normalised before they are padded, so the padding's zeros are the mean
colour, as in the papers' Torch code.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from rn_jax.data.in_memory import Examples
from rn_jax.data.statistics import normalization

# Eigenvalues and eigenvectors (the columns) of the 3x3 covariance of ImageNet's RGB
# pixels, on a scale from 0 to 1: variances along the principal axes, not standard
# deviations (fb.resnet.torch, datasets/imagenet.lua, "pca"). They agree with
# 0.2806, 0.2736 and 0.2877, the channels' standard deviations over all pixels of all
# training images (pytorch/vision#1439). Images are divided by the smaller 0.229, 0.224
# and 0.225, which are means of the standard deviations within each image.
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
_EIGENVECTORS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ],
    np.float32,
)
# Weights of ITU-R 601, as in fb.resnet.torch.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def normalizer(examples: Examples, kind: str) -> Callable[[jax.Array], jax.Array]:
    """Return the function from pixels [B, H, W, C] to normalised images.

    Args:
        examples: the training examples.
        kind: "contrast" for `contrast_normalize`, else a kind of `normalization`.

    Raises:
        InputError: `kind` is unknown, or there are no examples.
    """
    if kind == "contrast":
        return contrast_normalize
    stats = normalization(examples, kind)
    return partial(normalize, mean=stats.mean, std=stats.std)


def contrast_normalize(images: jax.Array) -> jax.Array:
    """Normalise the contrast globally: each image gets a mean of 0 and a std of 1.

    Highway networks use it for CIFAR (Srivastava et al. 2015); the available sources do
    not say with which std. An image of a single value becomes 0. Takes [B, H, W, C] of
    any dtype and returns f32[B, H, W, C].
    """
    images = images.astype(jnp.float32)
    axes = (1, 2, 3)
    std = images.std(axis=axes, keepdims=True)
    centred = images - images.mean(axis=axes, keepdims=True)
    return centred / jnp.where(std > 0, std, 1)


def normalize(
    images: jax.Array, mean: ArrayLike, std: ArrayLike, dtype=jnp.float32
) -> jax.Array:
    """Return (images - mean) / std, computed in float32 and converted to `dtype`.

    A mean image of another size is resized bilinearly to the images' size, so that a
    network can be tested on larger crops than it was trained on, or on whole images, as
    in the code that He et al. released for detection.

    Args:
        images: [B, H, W, C], uint8 or with colours already augmented.
        mean: mean of pixel values 0..255: a mean image [h, w, C], or any shape that
            broadcasts against [H, W, C].
        std: a number, or one per channel.
        dtype: dtype of the result, which is [B, H, W, C].
    """
    if np.ndim(mean) == 3 and np.shape(mean) != images.shape[1:]:
        shape = (*images.shape[1:3], np.shape(mean)[2])
        mean = jnp.asarray(mean, jnp.float32)
        mean = jax.image.resize(mean, shape, "linear", antialias=False)
    mean, std = (
        jnp.expand_dims(jnp.asarray(a, jnp.float32), range(images.ndim - np.ndim(a)))
        for a in (mean, std)
    )
    return ((images.astype(jnp.float32) - mean) / std).astype(dtype)


def random_crop(key: jax.Array, image: jax.Array, pad: int) -> jax.Array:
    """Pad `image` [H, W, C] with `pad` zeros on each side and crop it to [H, W, C].

    The two offsets are uniform in 0..2 * pad.
    """
    rows, columns = jax.random.randint(key, (2,), 0, 2 * pad + 1, jnp.int32)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    corner = (rows, columns, jnp.int32(0))
    return jax.lax.dynamic_slice(padded, corner, image.shape)


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirror `image` [H, W, C] left to right with probability 0.5."""
    mirrored = jax.random.bernoulli(key, jnp.float32(0.5))
    return jnp.where(mirrored, image[:, ::-1], image)


def pca_noise(key: jax.Array, image: jax.Array, std: float) -> jax.Array:
    """Shift the colour of a whole image along the principal axes of ImageNet's pixels.

    Add the sum of a_i * lambda_i * p_i to every pixel, with a_i ~ N(0, std) and the
    eigenvalues lambda_i and eigenvectors p_i of the covariance of RGB pixels
    (Krizhevsky et al. 2012, section 4.1, with std 0.1). An eigenvalue is a variance, so
    its effect depends on the scale of the pixels, which the paper does not give. As in
    fb.resnet.torch (`Lighting`), both are on a scale from 0 to 1, and the eigenvalue
    itself is used, not its square root: with std 0.1 the shift has standard deviations
    of 5.5, 0.48 and 0.11 of 255 along the three axes.

    Args:
        key: key of the three a_i.
        image: f32[H, W, 3], RGB in 0..255; so is the result, which is not clipped.
        std: standard deviation of the a_i.
    """
    shares = std * jax.random.normal(key, (3,), jnp.float32)
    shift = 255 * (_EIGENVECTORS @ (shares * _EIGENVALUES))
    return image + shift.reshape(1, 1, 3)


def color_jitter(key: jax.Array, image: jax.Array, strength: float) -> jax.Array:
    """Change brightness, contrast and saturation, in random order.

    Each blends the image, with weight w ~ U(1 - strength, 1 + strength), and black, its
    mean grey, or its grey image, with weight 1 - w, as in fb.resnet.torch.

    Args:
        key: key of the order and the three weights.
        image: f32[H, W, 3], RGB in 0..255; so is the result, which is not clipped.
        strength: largest change of a weight; 0.4 in fb.resnet.torch.
    """
    order_key, weight_key = jax.random.split(key)
    weights = jax.random.uniform(
        weight_key, (3,), jnp.float32, minval=1 - strength, maxval=1 + strength
    )

    def grey(image):
        return (image @ _LUMA)[..., None]

    others = (
        lambda image: jnp.zeros_like(image),
        lambda image: jnp.zeros_like(image) + grey(image).mean(),
        lambda image: jnp.zeros_like(image) + grey(image),
    )
    for choice in jax.random.permutation(order_key, 3):
        weight = weights[choice]
        image = weight * image + (1 - weight) * jax.lax.switch(choice, others, image)
    return image


def augment_color(
    key: jax.Array,
    images: jax.Array,
    *,
    jitter: float,
    pca_std: float,
    first_index: int | jax.Array = 0,
) -> jax.Array:
    """Change each image's colours at random: `color_jitter`, then `pca_noise`.

    Args:
        key: key of the step.
        images: [B, H, W, 3], RGB in 0..255.
        jitter: strength of `color_jitter`; 0 to omit it.
        pca_std: std of `pca_noise`; 0 to omit it.
        first_index: see `augment`.

    Returns:
        f32[B, H, W, 3], not clipped to 0..255.
    """

    def one(index, image):
        jitter_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
        if jitter > 0:
            image = color_jitter(jitter_key, image, jitter)
        return pca_noise(noise_key, image, pca_std) if pca_std > 0 else image

    indices = first_index + jnp.arange(len(images), dtype=jnp.int32)
    return jax.vmap(one)(indices, images.astype(jnp.float32))


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    pad: int,
    flip: bool,
    first_index: int | jax.Array = 0,
) -> jax.Array:
    """Crop and mirror each image at random.

    Args:
        key: key of the step.
        images: normalised images, [B, H, W, C].
        pad: zeros added to each side before the crop, in pixels; 0 for no crop.
        flip: whether to mirror half of the images.
        first_index: index of `images[0]` in the whole batch. Example i of the whole
            batch gets the key `fold_in(key, i)` on any number of devices.

    Returns:
        Images of the same shape and dtype; the input itself for pad 0 and flip False.
    """
    if pad == 0 and not flip:
        return images

    def one(index, image):
        crop_key, flip_key = jax.random.split(jax.random.fold_in(key, index))
        if pad > 0:
            image = random_crop(crop_key, image, pad)
        return random_flip(flip_key, image) if flip else image

    indices = first_index + jnp.arange(len(images), dtype=jnp.int32)
    return jax.vmap(one)(indices, images)


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    axis_name: str | None = None,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Mix each image and its target with those of another example of the batch.

    Example i of a whole batch of B examples is mixed with example B - 1 - i, on any
    number of devices: each exchanges its images with one other. Batches are in random
    order, so the pairs are random, as those of the authors' permutations are. One
    share or box is drawn for the whole batch, as in their code.

    Args:
        key: key of the step, the same on all devices.
        images: normalised images of this device, [B, H, W, C].
        targets: probabilities of the classes, f32[B, K].
        axis_name: axis of the devices over which the batch is split; None: there is
            one.
        mixup_alpha: alpha of `mixup_share`; 0 to omit it.
        cutmix_alpha: alpha of `cutmix_share`; 0 to omit it. With both, each batch has
            one of the two, with equal probability (as in timm).
        probability: probability that a batch is mixed (0.5 in Yun et al. 2019 on
            CIFAR).

    Returns:
        Images and targets of the same shapes and dtypes.
    """
    whether_key, which_key, draw_key = jax.random.split(key, 3)
    size = images.shape[1], images.shape[2]
    shares = [
        draw(draw_key, alpha, size)
        for draw, alpha in ((mixup_share, mixup_alpha), (cutmix_share, cutmix_alpha))
        if alpha > 0
    ]
    share = shares[0]
    if len(shares) == 2:
        first = jax.random.bernoulli(which_key, jnp.float32(0.5))
        share = jnp.where(first, shares[0], shares[1])
    mixed = jax.random.bernoulli(whether_key, jnp.float32(probability))
    share = jnp.where(mixed, share, 1)  # (H, W)

    def blend(array, share):
        other = _in_reverse(array, axis_name)
        return other + share.astype(array.dtype) * (array - other)

    pixels = share[None, :, :, None]  # (1, H, W, 1)
    return blend(images, pixels), blend(targets, share.mean(keepdims=True))


def _in_reverse(array, axis_name):
    """Return the rows of the whole batch in reverse order, of which this is a part."""
    if axis_name is not None:
        devices = lax.psum(1, axis_name)
        pairs = [(i, devices - 1 - i) for i in range(devices)]
        array = lax.ppermute(array, axis_name, pairs)
    return array[::-1]


def mixup_share(key: jax.Array, alpha: float, shape: tuple[int, int]) -> jax.Array:
    """Return the share lambda ~ Beta(alpha, alpha) of an image at all its pixels.

    The other image has 1 - lambda (Zhang et al. 2018, equation 1).

    Args:
        key: key of lambda.
        alpha: strength; 1 on CIFAR and 0.2 on ImageNet in the paper.
        shape: (H, W) of the result, f32[H, W].
    """
    alpha = jnp.float32(alpha)
    return jnp.full(shape, jax.random.beta(key, alpha, alpha, dtype=jnp.float32))


def cutmix_share(key: jax.Array, alpha: float, shape: tuple[int, int]) -> jax.Array:
    """Return 0 at the pixels of a random box and 1 elsewhere (Yun et al. 2019).

    The box has the sides W sqrt(1 - lambda) and H sqrt(1 - lambda), with lambda ~
    Beta(alpha, alpha), about a uniform centre (section 3.1, equations 1 and 2). As in
    the authors' code, what is outside the image is cut off, and the mean of the result
    is the share of the targets.

    Args:
        key: key of the box.
        alpha: 1 in the paper.
        shape: (H, W) of the result, f32[H, W].
    """
    share_key, centre_key = jax.random.split(key)
    alpha = jnp.float32(alpha)
    share = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)
    sides = jnp.array(shape, jnp.float32)
    half = (sides * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
    centre = jax.random.randint(centre_key, (2,), 0, jnp.array(shape), jnp.int32)
    rows, columns = (
        (jnp.arange(size) >= centre[i] - half[i])
        & (jnp.arange(size) < centre[i] + half[i])
        for i, size in enumerate(shape)
    )
    return 1 - (rows[:, None] & columns[None, :]).astype(jnp.float32)
