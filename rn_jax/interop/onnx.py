# SPDX-License-Identifier: Apache-2.0
"""A trained network as an ONNX program, through jax2onnx."""

import functools
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax

from rn_jax.errors import InputError, package_needed
from rn_jax.models.network import Network

# Protocol buffers, and so a file without external data, end here.
_MOST_BYTES = 2**31 - 2**20


def to_onnx(
    model: Network,
    variables: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    *,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
) -> bytes:
    """Export a network at test time, with its weights, for batches of any size.

    Blocks are written one after another, and pooling as maxima or sums of slices, which
    every runtime has.

    Args:
        model: the network of the variables.
        variables: collections, as `model.apply` takes them.
        image_shape: (H, W, C).
        preprocess: uint8[B, H, W, C] -> normalised images, included in the program;
            None for a program that takes normalised f32[B, H, W, C].

    Returns:
        A serialised ONNX model with the input "images" and the output "logits",
        f32[B, num_classes].

    Raises:
        InputError: the package jax2onnx is not installed, or the weights have 2 GiB or
            more.
    """
    needed = "ONNX programs are made with jax2onnx", "'jax2onnx>=0.17.1,<0.18'"
    with package_needed(*needed):
        import jax2onnx
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(variables))
    if size > _MOST_BYTES:
        raise InputError(
            f"A file of ONNX holds less than 2 GiB, and these weights have {size:,} "
            "bytes: export a StableHLO program instead."
        )
    if getattr(model, "scan_unroll", 0) is None:
        model = model.clone(scan_unroll=max(model.num_blocks, 1))

    def logits(images):
        images = images if preprocess is None else preprocess(images)
        y: Any = model.apply(variables, images, train=False)
        return y.astype(jnp.float32)

    dtype = jnp.float32 if preprocess is None else jnp.uint8
    (batch,) = jax.export.symbolic_shape("batch", constraints=["batch >= 1"])
    images = jax.ShapeDtypeStruct((batch, *image_shape), dtype)
    # Traced here, because jax2onnx replaces functions of JAX and Flax while it traces.
    program = jax.make_jaxpr(logits)(images)

    def simplified(images):
        return _evaluate(program.jaxpr, program.consts, [images])[0]

    with warnings.catch_warnings(action="ignore"):
        converted = jax2onnx.to_onnx(
            simplified,
            [images],
            model_name=type(model).__name__,
            input_names=["images"],
            output_names=["logits"],
        )
    return converted.SerializeToString()


# Primitives that only call a function, by the names of different versions of JAX.
_CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat2")
_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
_POOLS: Mapping[str, tuple[Callable, float]] = {
    "reduce_window_max": (lax.max, -np.inf),
    "reduce_window_sum": (lax.add, 0.0),
}


def _evaluate(jaxpr, consts, args):
    """Evaluate a jaxpr with calls inlined and without what cannot be converted.

    That is pooling and, for a batch of any size, padding.
    """
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom):
        return atom.val if hasattr(atom, "val") else values[atom]

    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [read(atom) for atom in eqn.invars]
        if name in (*_CALLS, *_CUSTOM):
            params = eqn.params
            inner = next(
                params[key]
                for key in ("call_jaxpr", "fun_jaxpr", "jaxpr")
                if key in params
            )
            consts = getattr(inner, "consts", [])  # a checkpoint's is not closed
            outputs = _evaluate(getattr(inner, "jaxpr", inner), consts, inputs)
        elif name == "name":  # of rematerialisation
            outputs = inputs
        elif name in _POOLS:
            outputs = [_pool(*_POOLS[name], inputs[0], **eqn.params)]
        elif name == "pad":
            outputs = [_pad(*inputs, **eqn.params)]
        else:
            found = eqn.primitive.bind(*inputs, **eqn.params)
            outputs = found if eqn.primitive.multiple_results else [found]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _pool(
    combine: Callable,
    start: float,
    x: jax.Array,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **undilated: Any,
) -> jax.Array:
    """Return `lax.reduce_window` by slices, one for each position in the window."""
    around = [(low, high, 0) for low, high in padding]
    x = _pad(x, jnp.asarray(start, x.dtype), padding_config=around)
    sizes = zip(x.shape, window_dimensions, window_strides, strict=True)
    reach = [stride * ((n - w) // stride) + 1 for n, w, stride in sizes]
    slices = [
        lax.slice(x, place, [*map(operator.add, place, reach)], window_strides)
        for place in np.ndindex(*window_dimensions)
    ]
    return functools.reduce(combine, slices)


def _pad(
    x: jax.Array,
    value: jax.Array,
    *,
    padding_config: Sequence[tuple[int, int, int]],
) -> jax.Array:
    """Return `lax.pad` by concatenation, with values on the outside alone."""
    for axis, (low, high, inside) in enumerate(padding_config):
        if inside or min(low, high) < 0:
            return lax.pad(x, value, padding_config)
        before, after = (
            lax.broadcast(value, (*x.shape[:axis], int(n), *x.shape[axis + 1 :]))
            for n in (low, high)
        )
        x = lax.concatenate([before, x], axis) if low else x
        x = lax.concatenate([x, after], axis) if high else x
    return x
