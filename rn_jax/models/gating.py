# SPDX-License-Identifier: Apache-2.0
"""Gates and paths inside a block.

A gate is one number per block, f32[], or one per block and example, f32[B]. Without
gates (None) nothing is multiplied and nothing is skipped.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from rn_jax.models.skipping import left
from rn_jax.stochastic_depth import Shaken, Subset


def gated_sum(
    block: nn.Module,
    x: jax.Array,
    shortcut: jax.Array,
    residual: Callable[[nn.Module, jax.Array], jax.Array],
    gate: jax.Array | Subset | Shaken | None,
    on_path: jax.Array | None = None,
) -> jax.Array:
    """Return shortcut + gate * residual(x), without computing a closed branch.

    Args:
        block: module in which `residual` creates its submodules.
        x: f[B, ...], input of the block.
        shortcut: f[B, H, W, C], output of the shortcut.
        residual: (block, x) -> F(x), with the shape of `shortcut`.
        gate: f32[], f32[B] or None, see `if_open`; or a `Subset` of i32[m] examples,
            which alone pass through the branch; or `Shaken` of f32[1] or f32[B].
        on_path: f32[], f32[B] or None. Where it is 1 the gradient passes through the
            branch alone, where it is 0 through the shortcut alone; values are unchanged
            (Veit et al. 2016, section 4.3). Not with `Subset`.

    Returns:
        f[B, H, W, C], before the activation that follows the sum.
    """

    def add(block, x, shortcut, gate):
        branch = residual(block, x)  # (B, H, W, C)
        block.sow("intermediates", "residual", branch)
        return shortcut + scale(gate, _pass_gradient(branch, on_path))

    shortcut = _pass_gradient(shortcut, on_path, unless=True)  # (B, H, W, C)
    return _gated(block, x, shortcut, add, gate)


def exclusive_sum(
    block: nn.Module,
    x: jax.Array,
    shortcut: jax.Array,
    gates_and_residual: Callable[
        [nn.Module, jax.Array], tuple[jax.Array, jax.Array, jax.Array]
    ],
    gate: jax.Array | Subset | Shaken | None,
    on_path: jax.Array | None = None,
) -> jax.Array:
    """Return (1 - b r(x)) * shortcut + b t(x) * F(x), with the block's own gates t, r.

    With r = t the two sides exclude each other: what the branch adds, the shortcut
    loses.

    Args:
        block, x, shortcut, on_path: as in `gated_sum`.
        gates_and_residual: (block, x) -> (t(x), r(x), F(x)), with the shape of
            `shortcut`; not computed if b is 0.
        gate: b, as in `gated_sum`.
    """

    def mix(block, x, shortcut, gate):
        t, removed, branch = gates_and_residual(block, x)
        branch = scale(gate, t) * branch
        block.sow("intermediates", "residual", branch)
        carried = (1 - scale(gate, removed)) * shortcut
        carried = _pass_gradient(carried, on_path, unless=True)
        return carried + _pass_gradient(branch, on_path)

    closed = _pass_gradient(shortcut, on_path, unless=True)
    return _gated(block, x, shortcut, mix, gate, closed)


def gated_features(
    layer: nn.Module,
    maps: Sequence[jax.Array],
    features: int,
    compute: Callable[[nn.Module, Sequence[jax.Array]], jax.Array],
    gate: jax.Array | Subset | Shaken | None,
) -> jax.Array:
    """Return gate * compute(maps), zeros if the gate is 0 (DenseNet).

    Args:
        layer: module in which `compute` creates its submodules.
        maps: f[B, H, W, C_i] each.
        features: channels of the result.
        compute: (layer, maps) -> f[B, H, W, features].
        gate: as in `gated_sum`.
    """

    def scaled(layer, maps, zeros, gate):
        new = compute(layer, maps)
        layer.sow("intermediates", "residual", new)
        return scale(gate, new)

    zeros = jnp.zeros((*maps[0].shape[:-1], features), maps[0].dtype)
    return _gated(layer, list(maps), zeros, scaled, gate)


def gated_layer(
    layer: nn.Module,
    x: jax.Array,
    output: Callable[[nn.Module, jax.Array], jax.Array],
    gate: jax.Array | None,
) -> jax.Array:
    """Return gate * output(x) + (1 - gate) * x, for a layer without a shortcut.

    Args:
        layer: module in which `output` creates its submodules.
        x: f[B, H, W, C].
        output: (layer, x) -> the layer's output, with the shape of `x`.
        gate: f32[], f32[B] or None; see `if_open`. 0 makes the layer the identity.
    """

    def interpolate(layer, x, same, gate):
        y = output(layer, x)
        return y if gate is None else scale(gate, y) + scale(1 - gate, same)

    return _gated(layer, x, x, interpolate, gate)


def _gated(block, x, shortcut, combine, gate, closed=None):
    """Return combine(block, x, shortcut, gate) if the gate is open, else `closed`.

    `closed` is the shortcut by default. With a `Subset`, only its examples are
    combined; the others keep the shortcut.
    """
    if isinstance(gate, Subset):
        chosen = jax.tree.map(lambda array: array[gate.indices], (x, shortcut))
        y = combine(block, *chosen, gate.weights)  # (m, H, W, C)
        return shortcut.at[gate.indices].set(y, unique_indices=True)
    if isinstance(gate, Shaken):
        return combine(block, x, shortcut, gate)
    closed = shortcut if closed is None else closed
    return if_open(block, gate, lambda b: combine(b, x, shortcut, gate), closed)


def if_open(
    module: nn.Module,
    gate: jax.Array | None,
    compute: Callable[[nn.Module], jax.Array],
    closed: jax.Array,
) -> jax.Array:
    """Return `compute(module)` if the gate is open, `closed` if it is 0.

    A gate of the mini-batch, f32[], is a conditional. A closed block is computed
    neither forward nor backward, its variables in every collection are unchanged
    (including BatchNorm's statistics), it sows zeros, and the gradient by its gate is
    0. With gates of examples, f32[B], the branch is computed for all of them.

    There is no conditional while the collection "intermediates" is mutable, because
    captured values cannot leave one side of it, and under `jax.disable_jit`, where JAX
    runs one side without knowing the other. The branch is then computed and the result
    selected, with the same values, gradients and variables.

    Args:
        module: module of the block.
        gate: f32[], which can skip the block; or f32[1], f32[B] or None, which cannot.
        compute: module -> the open block's output f[B, H, W, C], scaled by the gate.
        closed: f[B, H, W, C], the closed block's output.
    """
    if gate is None or gate.ndim or module.is_initializing():
        return compute(module)
    is_open = gate != 0
    eager = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    if eager or module.is_mutable_collection("intermediates"):
        before = _state(module)
        y = compute(module)  # (B, H, W, C)
        after = _state(module)
        kept = jax.tree.map(partial(jnp.where, is_open), after, left(before, after))
        put_variables(module, kept)
        return jnp.where(is_open, y, closed)

    opened: dict[str, Any] = {}  # shapes; JAX traces the open side first

    def open_side(module, closed):
        y = compute(module)  # (B, H, W, C)
        opened.update(jax.eval_shape(lambda: _state(module)))
        return y

    def closed_side(module, closed):
        put_variables(module, left(_state(module), opened))
        return closed

    return nn.cond(is_open, open_side, closed_side, module, closed)


def _state(module):
    """Return the mutable variables of a module, without captured values."""
    return {
        collection: jax.tree.map(lambda leaf: leaf, tree)  # updates are in place
        for collection, tree in module.variables.items()
        if collection != "intermediates" and module.is_mutable_collection(collection)
    }


def put_variables(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Write variables, by collection and name, into a module."""
    for collection, tree in state.items():
        for name, value in tree.items():
            module.put_variable(collection, name, value)


def scale(gate: jax.Array | Shaken | None, x: jax.Array) -> jax.Array:
    """Return gate * x in the dtype of x.

    Args:
        gate: f32[] or f32[B]; None returns x. `Shaken` multiplies x by `forward` and
            its gradient by `backward`.
        x: f[B, ...].
    """
    if gate is None:
        return x
    if isinstance(gate, Shaken):
        constant = lax.stop_gradient(x)
        return scale(gate.forward, constant) + scale(gate.backward, x - constant)
    return gate.astype(x.dtype).reshape(gate.shape + (1,) * (x.ndim - gate.ndim)) * x


def scale_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Return x, f[B, ...], with its gradient times `factor`, f32[] or f32[B]."""
    constant = lax.stop_gradient(x)
    return constant + scale(factor, x - constant)  # x - x is exactly 0


def _pass_gradient(x, on_path, *, unless=False):
    """Pass the gradient where `on_path` is 1, or, with `unless`, where it is 0."""
    if on_path is None:
        return x
    return scale_gradient(x, 1 - on_path if unless else on_path)
