# SPDX-License-Identifier: Apache-2.0
"""Gates and paths: what a block does with the numbers it is handed.

A gate is one number per block, f32[], or one per block and example, f32[B]. None means
that the network is used without gates: nothing is multiplied and nothing is skipped.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from rn_jax.stochastic_depth import Subset


def gated_sum(
    block: nn.Module,
    x: jax.Array,
    shortcut: jax.Array,
    residual: Callable[[nn.Module, jax.Array], jax.Array],
    gate: jax.Array | Subset | None,
    on_path: jax.Array | None = None,
) -> jax.Array:
    """shortcut + gate * residual(x), the branch not computed where the gate is 0.

    Args:
        block: the module whose submodules `residual` makes and calls.
        x: f[B, ...], the block's input.
        shortcut: f[B, H, W, C], the shortcut's output.
        residual: (block, x) -> f_l(x), of the shape of `shortcut`.
        gate: f32[], f32[B] or None, see `if_open`; or `Subset` of i32[m] examples,
            which alone go through the branch.
        on_path: f32[], f32[B] or None; see `single_path`. Not with `Subset`.

    Returns:
        f[B, H, W, C], before the activation that follows the sum.
    """
    if isinstance(gate, Subset):
        branch = scale(gate.weights, residual(block, x[gate.indices]))
        return shortcut.at[gate.indices].add(branch, unique_indices=True)

    def open_sum(block):
        branch = residual(block, x)
        block.sow("intermediates", "residual", branch)
        straight, branch = single_path(shortcut, branch, on_path)
        return straight + branch if gate is None else straight + scale(gate, branch)

    closed, _ = single_path(shortcut, shortcut, on_path)
    return if_open(block, gate, open_sum, closed)


def exclusive_sum(
    block: nn.Module,
    x: jax.Array,
    shortcut: jax.Array,
    gate_and_residual: Callable[[nn.Module, jax.Array], tuple[jax.Array, jax.Array]],
    gate: jax.Array | Subset | None,
    on_path: jax.Array | None = None,
) -> jax.Array:
    """(1 - b g(x)) * shortcut + b g(x) * F(x): the block's own gate g divides the sum.

    Args:
        block, x, shortcut, on_path: as in `gated_sum`.
        gate_and_residual: (block, x) -> (g(x), F(x)), of the shape of `shortcut`; not
            computed where b is 0.
        gate: b, as in `gated_sum`.
    """
    if isinstance(gate, Subset):
        g, branch = gate_and_residual(block, x[gate.indices])
        g, straight = scale(gate.weights, g), shortcut[gate.indices]
        mixed = (1 - g) * straight + g * branch
        return shortcut.at[gate.indices].set(mixed, unique_indices=True)

    def open_sum(block):
        g, branch = gate_and_residual(block, x)
        g = g if gate is None else scale(gate, g)
        branch = g * branch
        block.sow("intermediates", "residual", branch)
        straight, branch = single_path((1 - g) * shortcut, branch, on_path)
        return straight + branch

    closed, _ = single_path(shortcut, shortcut, on_path)
    return if_open(block, gate, open_sum, closed)


def gated_features(
    layer: nn.Module,
    maps: Sequence[jax.Array],
    features: int,
    compute: Callable[[nn.Module, Sequence[jax.Array]], jax.Array],
    gate: jax.Array | Subset | None,
) -> jax.Array:
    """gate * compute(maps), zeros and not computed where the gate is 0 (DenseNet).

    Args:
        layer: the module whose submodules `compute` makes and calls.
        maps: f[B, H, W, C_i] each.
        features: channels of the result.
        compute: (layer, maps) -> f[B, H, W, features].
        gate: as in `gated_sum`.
    """
    zeros = jnp.zeros((*maps[0].shape[:-1], features), maps[0].dtype)
    if isinstance(gate, Subset):
        new = compute(layer, [m[gate.indices] for m in maps])
        new = scale(gate.weights, new)
        return zeros.at[gate.indices].set(new, unique_indices=True)

    def open_layer(layer):
        new = compute(layer, maps)
        layer.sow("intermediates", "residual", new)
        return new if gate is None else scale(gate, new)

    return if_open(layer, gate, open_layer, zeros)


def gated_layer(
    layer: nn.Module,
    x: jax.Array,
    output: Callable[[nn.Module], jax.Array],
    gate: jax.Array | None,
) -> jax.Array:
    """gate * output + (1 - gate) * x: a layer without a shortcut, 0 is the identity.

    Args:
        layer: the module whose submodules `output` makes and calls.
        x: f[B, H, W, C].
        output: computes the layer, of the shape of `x`, given `layer`.
        gate: f32[], f32[B] or None; see `if_open`.
    """

    def open_layer(layer):
        y = output(layer)
        return y if gate is None else scale(gate, y) + scale(1 - gate, x)

    return if_open(layer, gate, open_layer, x)


def if_open(
    module: nn.Module,
    gate: jax.Array | None,
    compute: Callable[[nn.Module], jax.Array],
    closed: jax.Array,
) -> jax.Array:
    """Return `compute(module)` where the gate is open, `closed` where it is 0.

    A gate for the whole mini-batch, f32[], is a conditional: a closed block is computed
    neither forward nor backward, its variables of every collection stay as they are
    (BatchNorm's statistics too), what its branch would sow is zeros, and the gradient
    of the loss by its gate is 0. Gates of single examples, f32[B], multiply a branch
    that is computed, and sows, for all of them.

    While the collection "intermediates" is mutable there is no conditional, because
    captured values cannot leave one side of it: the branch is computed and the result
    chosen, with the same values, gradients and variables. So it is under
    `jax.disable_jit`, where JAX runs one side and the other is not known.
    """
    if gate is None or gate.ndim or module.is_initializing():
        return compute(module)
    is_open = gate != 0
    eager = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    if eager or module.is_mutable_collection("intermediates"):
        before = _state(module)
        y = compute(module)
        after = _state(module)
        kept = jax.tree.map(partial(jnp.where, is_open), after, _left(before, after))
        _put(module, kept)
        return jnp.where(is_open, y, closed)

    opened: dict[str, Any] = {}  # shapes; JAX traces the side that fills it first

    def open_side(module, closed):
        y = compute(module)
        opened.update(jax.eval_shape(lambda: _state(module)))
        return y

    def closed_side(module, closed):
        _put(module, _left(_state(module), opened))
        return closed

    return nn.cond(is_open, open_side, closed_side, module, closed)


def _state(module):
    """The mutable variables of a module, but what is captured, by collection."""
    return {
        collection: jax.tree.map(lambda leaf: leaf, tree)  # updates are in place
        for collection, tree in module.variables.items()
        if collection != "intermediates" and module.is_mutable_collection(collection)
    }


def _left(before, after):
    """The leaves of `before`, and zeros for those that only `after` has."""
    there = dict(jax.tree_util.tree_leaves_with_path(before))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: there[path] if path in there else jnp.zeros_like(leaf), after
    )


def _put(module, state):
    for collection, tree in state.items():
        for name, value in tree.items():
            module.put_variable(collection, name, value)


def scale(gate: jax.Array, x: jax.Array) -> jax.Array:
    """gate * x for a gate f32[] or f32[B] and x f[B, ...], in the dtype of x."""
    return gate.astype(x.dtype).reshape(gate.shape + (1,) * (x.ndim - gate.ndim)) * x


def single_path(
    shortcut: jax.Array, branch: jax.Array, on_path: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The two terms of a block's sum, with gradients through one of them alone.

    The gradient passes through the branch where `on_path` is 1, and through the
    shortcut where it is 0; the values are unchanged (Veit et al. 2016, section 4.3).

    Args:
        shortcut: f[B, H, W, C].
        branch: f[B, H, W, C].
        on_path: f32[] or, a path for each example, f32[B], 0 or 1; None leaves both
            terms as they are.
    """
    if on_path is None:
        return shortcut, branch
    return scale_gradient(shortcut, 1 - on_path), scale_gradient(branch, on_path)


def scale_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x f[B, ...], of which the gradient is multiplied by `factor`, f32[] or f32[B]."""
    constant = lax.stop_gradient(x)
    return constant + scale(factor, x - constant)  # x - x is exactly 0
