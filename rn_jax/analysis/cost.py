# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds of a network, counted from its own program."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core


def multiply_adds(model: nn.Module, image_size: int, channels: int = 3) -> int:
    """Multiply-adds of convolutions and matrix products for one image at test.

    The papers' "FLOPs". Counted from the traced program, a scan's body as often as it
    runs, which XLA's cost analysis does not; activations, BatchNorm and pooling are not
    counted, as in the papers.

    Args:
        model: one of rn_jax's networks.
        image_size: side of the image in pixels.
        channels: of the image.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)

    def init(image):
        return model.init({"params": jax.random.key(0)}, image, train=False)

    variables = jax.eval_shape(init, image)
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(
        variables, image
    )
    return _count(program.jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        out = equation.outvars[0].aval
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(out.shape) * math.prod(kernel) // outputs
        elif name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lengths = (equation.invars[0].aval.shape[axis] for axis in contracted)
            total += math.prod(out.shape) * math.prod(lengths)
        elif name == "cond":
            total += max(
                (_count(b.jaxpr) for b in params.get("branches", ())), default=0
            )
        else:
            times = params.get("length", 1) if name == "scan" else 1
            inner = (_inner(value) for value in params.values())
            total += times * sum(_count(j) for j in inner if j is not None)
    return total


def _inner(value):
    if isinstance(value, core.ClosedJaxpr):
        return value.jaxpr
    return value if isinstance(value, core.Jaxpr) else None
