# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds of a network, counted in its traced program."""

import collections
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core


def multiply_adds(model: nn.Module, image_size: int, channels: int = 3) -> int:
    """Count the multiply-adds of convolutions and matrix products for a test image.

    These are the papers' "FLOPs", without activations, BatchNorm and pooling. Unlike
    XLA's cost analysis, this counts a scan's body as often as it runs.

    Args:
        model: network of this library.
        image_size: side of the image in pixels.
        channels: channels of the image.
    """
    work = multiply_adds_by_module(model, (image_size, image_size, channels))
    return sum(work.values())


def multiply_adds_by_module(
    model: nn.Module, image_shape: tuple[int, int, int]
) -> dict[tuple[str, ...], int]:
    """Count the multiply-adds of each module, by its path.

    A module in a scan's body has those of all iterations.

    Args:
        model: network of this library.
        image_shape: (H, W, C).
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def init(image):
        return model.init({"params": jax.random.key(0)}, image, train=False)

    variables = jax.eval_shape(init, image)
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(
        variables, image
    )
    work: collections.Counter[tuple[str, ...]] = collections.Counter()
    for scope, count in _counts(program.jaxpr, (), 1):
        _network, *path = (name for name in scope if re.fullmatch(r"\w+", name))
        work[tuple(path)] += count
    return dict(work)


def _counts(jaxpr, scope, times):
    """Yield (names of its scopes, multiply-adds) of every product in a program."""
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        out = equation.outvars[0].aval
        inside = (*scope, *str(equation.source_info.name_stack).split("/"))
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            yield inside, times * math.prod(out.shape) * math.prod(kernel) // outputs
        elif name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lengths = (equation.invars[0].aval.shape[axis] for axis in contracted)
            yield inside, times * math.prod(out.shape) * math.prod(lengths)
        elif name == "cond":
            branches = [
                list(_counts(b.jaxpr, inside, times)) for b in params["branches"]
            ]
            yield from max(branches, key=lambda b: sum(n for _, n in b))
        else:
            turns = times * (params.get("length", 1) if name == "scan" else 1)
            for value in params.values():
                inner = getattr(value, "jaxpr", value)  # of a ClosedJaxpr
                if isinstance(inner, core.Jaxpr):
                    yield from _counts(inner, inside, turns)
