# SPDX-License-Identifier: Apache-2.0
"""A trained network as one StableHLO program that runs without this package."""

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
    """Export a network at test time, with its weights, for batches of any size.

    Args:
        model: the network of the variables.
        variables: collections, as `model.apply` takes them.
        image_shape: (H, W, C).
        preprocess: uint8[B, H, W, C] -> normalised images, included in the program;
            None for a program that takes normalised f32[B, H, W, C].
        platforms: the platforms to lower for.

    Returns:
        A serialised `jax.export.Exported`, for `from_stablehlo`, of one function:
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
    """Return the function that `to_stablehlo` exported: images -> logits.

    It is compiled when it is first called, and may be jitted. Load only programs that
    you trust: unlike weights, they are code.

    Raises:
        InputError: the content is not such a program, or the package flatbuffers is not
            installed.
    """
    try:
        return jax.export.deserialize(bytearray(content)).call
    except ImportError as error:
        raise InputError(_NEEDS) from error
    except Exception as error:  # damaged bytes raise errors of any kind
        raise InputError(
            "This is not a program that jax.export wrote; to_stablehlo and "
            "experiments.export write one."
        ) from error
