# SPDX-License-Identifier: Apache-2.0
"""Normalisation and augmentation on the device, as pure functions of a key.

Images are normalised first and padded afterwards, so that the zeros of the padding are
the mean colour, as in every Torch code of the papers.
"""

import jax
import jax.numpy as jnp


def normalize(
    images: jax.Array, mean: jax.Array, std: jax.Array, dtype=jnp.float32
) -> jax.Array:
    """Return (images - mean) / std, computed in float32 and given as `dtype`.

    Args:
        images: uint8[B, H, W, C].
        mean: over pixel values 0..255; broadcasts against [H, W, C].
        std: like `mean`.
        dtype: of the result.
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return ((images.astype(jnp.float32) - mean) / std).astype(dtype)


def random_crop(key: jax.Array, image: jax.Array, pad: int) -> jax.Array:
    """Pad `image` [H, W, C] with `pad` zeros on each side and cut [H, W, C] out again.

    The offsets are uniform in 0..2 * pad, one for each direction.
    """
    rows, columns = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return jax.lax.dynamic_slice(padded, (rows, columns, 0), image.shape)


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirror `image` [H, W, C] left to right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


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
        key: of the step.
        images: normalised, [B, H, W, C].
        pad: zeros on each side before the crop, in pixels; 0 for no crop.
        flip: whether to mirror half of the images.
        first_index: position of `images[0]` in the whole batch. Example i of the whole
          batch is given `fold_in(key, i)`, whichever device holds it and however many
          there are.

    Returns:
        Images of the same shape and dtype; the very input for pad 0 and flip False.
    """
    if pad == 0 and not flip:
        return images

    def one(index, image):
        crop_key, flip_key = jax.random.split(jax.random.fold_in(key, index))
        if pad > 0:
            image = random_crop(crop_key, image, pad)
        return random_flip(flip_key, image) if flip else image

    return jax.vmap(one)(first_index + jnp.arange(len(images)), images)
