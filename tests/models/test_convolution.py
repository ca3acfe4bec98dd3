# SPDX-License-Identifier: Apache-2.0
"""conv2d: its values and gradients, and the form they take in compiled programs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rn_jax.errors import InputError
from rn_jax.models.convolution import conv2d

# The form that XLA's CPU compiler has a fast kernel for, in and out of control flow.
ORDINARY = "b01f_01io->b01f"


def square(pad):
    return ((pad, pad), (pad, pad))


def operands(size, kernel, stride, padding, groups, seed=0):
    """Images, a kernel and a cotangent, as float64 from NumPy."""
    rng = np.random.default_rng(seed)
    out = [
        (n + sum(pad) - kernel) // stride + 1
        for n, pad in zip(size, padding, strict=True)
    ]
    return (
        rng.normal(size=(2, *size, 4)),
        rng.normal(size=(kernel, kernel, 4 // groups, 8)),
        rng.normal(size=(2, *out, 8)),
    )


def reference(x, w, g, stride, padding, groups):
    """(y, dx, dw) by the definition, one output pixel and one group at a time."""
    k, fan_in, out = w.shape[0], w.shape[2], w.shape[3] // groups
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    y, dpadded, dw = np.zeros(g.shape), np.zeros(padded.shape), np.zeros(w.shape)
    for i in range(g.shape[1]):
        for j in range(g.shape[2]):
            for group in range(groups):
                o = slice(group * out, (group + 1) * out)
                patch = np.s_[
                    :,
                    i * stride : i * stride + k,
                    j * stride : j * stride + k,
                    group * fan_in : (group + 1) * fan_in,
                ]
                y[:, i, j, o] = np.einsum("buvc,uvco->bo", padded[patch], w[..., o])
                dpadded[patch] += np.einsum("bo,uvco->buvc", g[:, i, j, o], w[..., o])
                dw[..., o] += np.einsum("bo,buvc->uvco", g[:, i, j, o], padded[patch])
    (top, _), (left, _) = padding
    dx = dpadded[:, top : top + x.shape[1], left : left + x.shape[2]]
    return y, dx, dw


CASES = [
    (size, kernel, stride, square(kernel // 2), groups)
    for size in ((8, 6), (7, 9))
    for kernel in (1, 3)
    for stride in (1, 2)
    for groups in (1, 2, 4)
] + [
    ((11, 12), 7, 2, square(3), 1),  # the stem of the ImageNet networks
    ((7, 6), 3, 2, ((2, 0), (1, 3)), 1),
    ((7, 6), 3, 1, ((4, 0), (0, 5)), 1),  # more zeros than the window is wide
    ((8, 8), 1, 2, square(1), 1),
    ((6, 9), 2, 3, ((0, 1), (0, 0)), 1),  # the window leaves pixels out
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_by_the_definition(x64, case):
    stride, padding, groups = case[2:]
    x, w, g = operands(*case)
    arguments = {"stride": stride, "padding": padding, "groups": groups}

    @jax.jit
    def both(x, w, g):
        results = {}
        for gradient in ("auto", "xla"):
            y, vjp = jax.vjp(
                lambda *a: conv2d(*a, gradient=gradient, **arguments), x, w
            )
            results[gradient] = (y, *vjp(g))
        return results

    expected = reference(x, w, g, stride, padding, groups)
    for results in both(x, w, g).values():
        for name, ours, theirs in zip(
            ("y", "dx", "dw"), results, expected, strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-12, rtol=0, err_msg=name)


# --- The same in control flow ---------------------------------------------------------

PLACES = ("entry", "scan", "cond")


def loss_in(place, gradient, stride, kernel, groups):
    """loss(xs f[n, B, H, W, C], w, is_open), the convolution at that place of it."""

    def one(x, w):
        y = conv2d(
            x,
            w,
            stride=stride,
            padding=square(kernel // 2),
            groups=groups,
            gradient=gradient,
        )
        return jnp.tanh(y).sum()  # not linear, so that the gradient needs the forward

    def loss(xs, w, is_open):
        if place == "entry":
            return one(xs[0], w)
        if place == "scan":
            return lax.scan(lambda c, x: (c + one(x, w), None), 0 * w.sum(), xs)[0]
        return lax.cond(is_open, one, lambda x, w: 0 * w.sum(), xs[0], w)

    return loss


@pytest.mark.parametrize("stride, kernel, groups", [(1, 3, 1), (2, 1, 1), (2, 3, 2)])
def test_auto_equals_xla_everywhere(x64, stride, kernel, groups):
    x, w, _ = operands((8, 7), kernel, stride, square(kernel // 2), groups)
    xs = np.stack([x, 0.5 * x, -x])

    @jax.jit
    def gradients(*args):
        return {
            (place, gradient): jax.value_and_grad(
                loss_in(place, gradient, stride, kernel, groups), (0, 1)
            )(*args)
            for place in PLACES
            for gradient in ("auto", "xla")
        }

    results = gradients(xs, w, True)
    for place in PLACES:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-12),
            results[place, "auto"],
            results[place, "xla"],
        )
    closed = gradients(xs, w, False)["cond", "auto"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(closed))


def compiled_forms(place, gradient, stride, kernel, groups=1):
    """The dimension orders of all convolutions in the compiled gradient.

    A 1x1 convolution that XLA has made a matrix product counts as "dot".
    """
    # XLA swaps image and kernel where the window is larger than the output.
    x, w, _ = operands((16, 16), kernel, stride, square(kernel // 2), groups)
    xs, w = np.stack([x] * 3).astype("float32"), w.astype("float32")
    step = jax.jit(
        jax.value_and_grad(loss_in(place, gradient, stride, kernel, groups), (0, 1))
    )
    text = step.lower(xs, w, True).compile().as_text()
    assert {"scan": " while(", "cond": " conditional("}[place] in text
    forms = re.findall(r" convolution\(.*dim_labels=([\w>-]+)", text)
    return forms + re.findall(r" (dot)\(", text)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the CPU's form")
@pytest.mark.parametrize("place", ["scan", "cond"])
@pytest.mark.parametrize(
    "case", [(1, 3), (2, 3), (1, 1), (2, 1), (2, 7), (1, 3, 2), (2, 3, 2)]
)
@pytest.mark.usefixtures("optimized")
def test_cpu_gradients_are_ordinary_convolutions_in_control_flow(place, case):
    # Any other form falls to a loop that is 10 to 100 times slower.
    forms = compiled_forms(place, "auto", *case)
    assert len(forms) >= 3  # forward and two gradients
    assert set(forms) - {"dot"} == {ORDINARY}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the CPU's form")
@pytest.mark.parametrize("place", ["scan", "cond"])
@pytest.mark.usefixtures("optimized")
def test_autodiff_has_the_forms_that_the_test_above_looks_for(place):
    assert set(compiled_forms(place, "xla", 1, 3)) > {ORDINARY}


def lowered_forms(gradient, platforms):
    """The dimension orders of a scan's convolutions, lowered for those platforms."""
    xs = jax.ShapeDtypeStruct((3, 2, 8, 8, 4), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.float32)
    is_open = jax.ShapeDtypeStruct((), jnp.bool_)
    step = jax.jit(jax.value_and_grad(loss_in("scan", gradient, 1, 3, 1), (0, 1)))
    text = jax.export.export(step, platforms=platforms)(xs, w, is_open).mlir_module()
    return sorted(re.findall(r"dim_numbers = (.*?->\[[^]]*\])", text))


def test_lowering_for_a_gpu_keeps_the_form_that_cudnn_knows():
    ordinary = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    forms = {
        (gradient, platform): lowered_forms(gradient, [platform])
        for gradient in ("auto", "xla")
        for platform in ("cpu", "cuda")
    }
    assert forms["auto", "cuda"] == forms["xla", "cuda"]
    assert set(forms["auto", "cuda"]) > {ordinary}
    assert set(forms["auto", "cpu"]) == {ordinary}


def test_one_export_for_several_platforms():
    forms = lowered_forms("auto", ["cpu", "cuda", "tpu"])
    both = lowered_forms("auto", ["cuda"]) + lowered_forms("auto", ["cpu"])
    assert set(forms) == set(both)


# --- Forward mode, and bad input ------------------------------------------------------


def test_forward_mode(x64):
    arguments = {"stride": 2, "padding": square(1), "groups": 2}
    x, w, _ = operands((7, 6), 3, 2, square(1), 2)
    dx, dw, _ = operands((7, 6), 3, 2, square(1), 2, seed=1)

    def conv(gradient):
        return lambda x, w: conv2d(x, w, gradient=gradient, **arguments)

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(conv("auto"), (x, w), (dx, dw))
    y, tangent = jax.jvp(conv("xla"), (x, w), (dx, dw))
    h = 1e-3  # no error of order h: the function is bilinear
    plus, minus = (conv("xla")(x + s * dx, w + s * dw) for s in (h, -h))
    np.testing.assert_allclose(tangent, (plus - minus) / (2 * h), rtol=0, atol=1e-9)
    np.testing.assert_allclose(y, conv("auto")(x, w), rtol=0, atol=1e-12)


def test_bad_gradient_name():
    x, w, _ = operands((8, 8), 3, 1, square(1), 1)
    with pytest.raises(InputError, match=r'"auto" or "xla", not \'fast\'\.$'):
        conv2d(x, w, gradient="fast")
