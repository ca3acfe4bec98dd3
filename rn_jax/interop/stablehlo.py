# SPDX-License-Identifier: Apache-2.0
"""A trained network as one StableHLO program, which runs without this package."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from rn_jax.errors import InputError
from rn_jax.models.network import Network

_NEEDS = "StableHLO programs need the package flatbuffers: pip install flatbuffers."


def to_stablehlo(
    model: Network,
    variables: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    *,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> bytes:
    """The network by its test rule, for batches of any size, weights included.

    Args:
        model: that the variables belong to.
        variables: collections as `model.apply` takes them.
        image_shape: (H, W, C).
        preprocess: uint8[B, H, W, C] -> normalised images, made part of the program;
            None for a program that takes normalised f32[B, H, W, C].
        platforms: that it is lowered for.

    Returns:
        What `from_stablehlo` takes: a serialised `jax.export.Exported` of one function,
        images -> logits f32[B, num_classes].

    Raises:
        InputError: the package flatbuffers is not installed.
    """

    def logits(images):
        images = images if preprocess is None else preprocess(images)
        y: Any = model.apply(variables, images, train=False)
        return y.astype(jnp.float32)

    (batch,) = jax.export.symbolic_shape("batch")
    dtype = jnp.float32 if preprocess is None else jnp.uint8
    images = jax.ShapeDtypeStruct((batch, *image_shape), dtype)
    program = jax.export.export(jax.jit(logits), platforms=platforms)(images)
    try:
        return bytes(program.serialize())
    except ImportError as error:
        raise InputError(_NEEDS) from error


def from_stablehlo(content: bytes) -> Callable[[jax.Array], jax.Array]:
    """The function that `to_stablehlo` wrote: images -> logits, to be jitted or not.

    It is compiled when it is first called. Take programs from those you trust: unlike
    weights they are code.

    Raises:
        InputError: it is no such program, or the package flatbuffers is not installed.
    """
    try:
        return jax.export.deserialize(bytearray(content)).call
    except ImportError as error:
        raise InputError(_NEEDS) from error
    except Exception as error:  # whatever damaged bytes make the reader raise
        raise InputError(
            "This is no program that jax.export wrote; to_stablehlo and "
            "experiments.export make one."
        ) from error
