# SPDX-License-Identifier: Apache-2.0
"""Running the open blocks of a stage alone, forward and backward.

A scan of conditionals does the same, but autodiff makes each conditional hand over
everything that its gradient needs, in many small copies, and outside a CUDA graph the
host of a GPU waits for each decision. Here the stage has a `custom_vjp`, in one of two
forms:

- a loop over the open blocks, which has as many turns as there are open blocks. The
  program is the same for any set of them, and does not grow with the number of blocks;
- a straight line of conditionals, which a GPU can run as one CUDA graph.

The backward pass keeps what `jax.vjp` of each open block keeps, except for the block's
parameters and gates, which are read again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import lift
from jax import lax
from jax.custom_derivatives import SymbolicZero

from rn_jax.stochastic_depth import Shaken, Subset

# Arrays of a block with at most this many numbers travel in one vector, since a device
# copies one array faster than many small ones.
SMALL = 4096

Arrays = list[jax.Array]


def over_open_blocks(fn: Callable, *, length: int, in_line: bool) -> Callable:
    """Lift `run_open` to modules, as `nn.scan` lifts `lax.scan`.

    Args:
        fn: (block, x, gate, on_path, ...) -> y, like `x`. The gate of a
            mini-batch is f32[1], so that the block has no conditional of its own.
        length: L, the number of blocks.
        in_line: as in `run_open`.

    Returns:
        run(blocks, x, gates, paths, ...) -> y. `blocks` has variables stacked on axis
        0; gates, paths and further arguments are f32[L], f32[L, B], `Subset` (gates
        alone) or None.
    """

    def lifted(scope_fn, repack_fn, variables, rngs, x, gates, *others):
        def call(inputs, x):
            variables, rngs, *per_block = inputs
            scopes = scope_fn(variables, rngs)
            return fn(scopes, x, *per_block), repack_fn(scopes)

        def split(key):
            return jax.random.split(key, length)

        rngs = tuple(lift.tree_map_rngs(split, group) for group in rngs)
        is_open = None
        if closes_blocks(gates):
            gates, is_open = gates[:, None], gates != 0
        inputs = variables, rngs, gates, *others
        return run_open(call, inputs, variables, x, is_open, in_line=in_line)

    return lift.pack(lifted, (True,), (True,), (True,), name="run_open")


def closes_blocks(gates: jax.Array | Subset | Shaken | None) -> bool:
    """Return whether gates are those of a mini-batch, f32[L], which close blocks."""
    return not isinstance(gates, Subset | Shaken | None) and gates.ndim == 1


def run_open(
    call: Callable,
    inputs: Any,
    before: Any,
    x: jax.Array,
    is_open: jax.Array | None,
    *,
    in_line: bool,
) -> tuple[jax.Array, Any]:
    """Apply the open ones of L blocks, one after the other.

    Only first-order reverse-mode differentiation is supported.

    Args:
        call: (inputs of one block, x) -> (y, its updates), with y like x.
        inputs: pytree of arrays and PRNG keys with the blocks along axis 0.
        before: updates of closed blocks, stacked on axis 0; entries that are missing
            are zeros.
        x: input of the first block.
        is_open: bool[L]; None: all are open.
        in_line: whether to write one conditional for each block instead of a loop.

    Returns:
        (output of the last open block, updates with the blocks along axis 0).
    """
    inputs, before = jax.tree.map(jnp.asarray, (inputs, before))  # NumPy's as well
    leaves, tree = jax.tree.flatten(inputs)
    _, shapes = jax.eval_shape(call, at(inputs, 0), x)

    def zeros(new):
        return jnp.zeros((len(leaves[0]), *new.shape), new.dtype)

    updates, updates_tree = jax.tree.flatten(left(before, shapes, zeros))

    def block(leaves, x):
        y, updates = call(jax.tree.unflatten(tree, leaves), x)
        return y, jax.tree.leaves(updates)

    x, updates = _run(block, in_line, leaves, x, updates, is_open)
    return x, jax.tree.unflatten(updates_tree, updates)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(block, in_line, leaves, x, updates, is_open):
    packing, inputs = _Packing(at(updates, 0)), _of_block(leaves, in_line)

    def step(x, place):
        y, new = block(inputs(place), x)
        return y, packing.pack(new)

    def closed(place):
        return packing.pack(at(updates, place))

    x, updates = _visit(step, x, closed, is_open, len(leaves[0]), in_line)
    return x, packing.unpack(updates)


def _forward(block, in_line, *args):
    """Return the outputs of `_run` and what its derivative needs."""
    leaves, x, updates, is_open = jax.tree.map(lambda arg: arg.value, args)
    wanted = [i for i, leaf in enumerate(args[0]) if leaf.perturbed]
    length, inputs = len(leaves[0]), _of_block(leaves, in_line)
    gradient: Any = None  # known when `step` has been traced

    def step(x, place):
        nonlocal gradient
        of_block = inputs(place)

        def of_wanted(x, some):
            return block(_replaced(of_block, wanted, some), x)

        some = [of_block[i] for i in wanted]
        (y, new), pull = jax.vjp(of_wanted, x, some)
        gradient = _Gradient(new, pull, of_block, wanted)
        return y, gradient.pack(new, pull)

    def closed(place):
        lead = np.empty(length)[place].shape  # of one block, or of all
        return gradient.pack_closed(at(updates, place), lead)

    jax.eval_shape(partial(step, place=0), x)
    x, outputs = _visit(step, x, closed, is_open, length, in_line)
    return (x, gradient.updates(outputs)), (leaves, outputs, is_open, gradient)


def _backward(block, in_line, residuals, cotangents):
    leaves, outputs, is_open, gradient = residuals
    g, of_updates = cotangents
    if isinstance(g, SymbolicZero):  # the loss depends on updates alone
        g = jnp.zeros(g.shape, g.dtype)
    wanted = [leaves[i] for i in gradient.wanted]
    packing, inputs = _Packing(at(wanted, 0)), _of_block(leaves, in_line)

    def step(g, place):
        of_new = [_cotangent_of_block(c, place) for c in of_updates]
        of_block = at(outputs, place)
        if in_line and is_open is None:
            # Or XLA would merge what is computed again with the first time.
            of_block = lax.optimization_barrier(of_block)
        pull = gradient.pull(inputs(place), of_block)
        g, new = pull((g, of_new))
        return g, packing.pack(new)

    zeros = [jnp.zeros_like(leaf) for leaf in wanted]

    def closed(place):
        return packing.pack(at(zeros, place))

    length = len(leaves[0])
    g, grads = _visit(step, g, closed, is_open, length, in_line, reverse=True)
    grads = packing.unpack(grads)
    of_leaves = _replaced([None] * len(leaves), gradient.wanted, grads)
    return of_leaves, g, [_of_closed(is_open, leaf) for leaf in of_updates], None


_run.defvjp(_forward, _backward, symbolic_zeros=True)


def _visit(step, carry, closed, is_open, length, in_line, *, reverse=False):
    """Visit the open blocks, from the first to the last or in `reverse`.

    Args:
        step: (carry, position of a block) -> (carry, outputs of the block).
        carry: before the first block.
        closed: position -> outputs of a closed block; slice(None) asks for those of all
            blocks, along axis 0.
        is_open: bool[L]; None: all are open.
        length: L.
        in_line: whether there is a conditional for each block instead of a loop.

    Returns:
        (carry, outputs with the blocks along axis 0).
    """
    if in_line:
        found: dict[int, Arrays] = {}
        places = range(length)
        for place in reversed(places) if reverse else places:
            if is_open is None:
                carry, found[place] = step(carry, place)
                continue
            # Each side slices the stacked arrays itself, since a device would copy what
            # enters a conditional.
            carry, found[place] = lax.cond(
                is_open[place],
                partial(step, place=place),
                lambda carry, place=place: (carry, closed(place)),
                carry,
            )
        outputs = zip(*(found[place] for place in places), strict=True)
        return carry, [jnp.stack(arrays) for arrays in outputs]

    number = length
    if is_open is not None:
        number, order = is_open.sum(), jnp.argsort(~is_open, stable=True)

    def turn(i, carry_and_outputs):
        carry, outputs = carry_and_outputs
        place = number - 1 - i if reverse else i
        place = place if is_open is None else order[place]
        carry, new = step(carry, place)
        return carry, [
            lax.dynamic_update_index_in_dim(array, value, place, 0)
            for array, value in zip(outputs, new, strict=True)
        ]

    return lax.fori_loop(0, number, turn, (carry, closed(slice(None))))


def _of_block(leaves, in_line):
    """Return the function from the position of a block to its inputs.

    A loop slices the packed inputs. In a straight line a slice is part of what uses it.
    """
    if in_line:
        return partial(at, leaves)
    packing = _Packing(at(leaves, 0))
    packed = packing.pack(leaves)
    return lambda place: packing.unpack(at(packed, place))


@jax.tree_util.register_static
class _Gradient:
    """Packs the updates of a block together with what its derivative needs.

    Attributes:
        wanted: positions of the block's inputs that it is differentiated by.
    """

    def __init__(
        self,
        updates: Arrays,
        pull: Callable,
        inputs: Sequence[Any],
        wanted: Sequence[int],
    ):
        leaves, self._tree = jax.tree.flatten(pull)
        places = {id(leaf): place for place, leaf in enumerate(inputs)}
        self._places = [places.get(id(leaf)) for leaf in leaves]
        self._num_updates = len(updates)
        self._packing = _Packing([*updates, *self._own(pull)])
        self.wanted = wanted

    def _own(self, pull):
        """Return the arrays that a `pull` has besides the inputs of the block."""
        pairs = zip(jax.tree.leaves(pull), self._places, strict=True)
        return [leaf for leaf, place in pairs if place is None]

    def pack(self, updates: Arrays, pull: Callable) -> Arrays:
        """Return the updates of a block and what to keep of its `pull`."""
        return self._packing.pack([*updates, *self._own(pull)])

    def pack_closed(self, updates: Arrays, lead: tuple[int, ...]) -> Arrays:
        """Return the same for closed blocks, of which nothing is kept.

        Args:
            updates: the updates of these blocks.
            lead: (), or (L,) for L blocks along axis 0.
        """
        own = self._packing.arrays[self._num_updates :]
        empty = [lax.empty((*lead, *each.shape), each.dtype) for each in own]
        return self._packing.pack([*updates, *empty])

    def updates(self, packed: Arrays) -> Arrays:
        """Return the updates of what was packed."""
        return self._packing.unpack(packed)[: self._num_updates]

    def pull(self, inputs: Sequence[Any], packed: Arrays) -> Callable:
        """Return the `pull` of a block from its inputs and what was packed."""
        own = iter(self._packing.unpack(packed)[self._num_updates :])
        leaves = [next(own) if p is None else inputs[p] for p in self._places]
        return jax.tree.unflatten(self._tree, leaves)


class _Packing:
    """Packs arrays of a block: all small ones of a dtype become one vector.

    The arrays to pack or unpack may have the blocks along a further axis 0.
    """

    def __init__(self, arrays: Sequence[Any]):
        self.arrays = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
        self._groups: dict[Any, list[int]] = {}
        for i, array in enumerate(arrays):
            group = array.dtype if array.size <= SMALL else i
            self._groups.setdefault(group, []).append(i)

    def pack(self, arrays: Sequence[Any]) -> Arrays:
        """Return one array for each large one and for all small ones of a dtype."""

        def vector(i):
            ahead = arrays[i].ndim - self.arrays[i].ndim
            return arrays[i].reshape(*arrays[i].shape[:ahead], -1)

        return [
            arrays[group[0]]
            if len(group) == 1
            else jnp.concatenate([vector(i) for i in group], axis=-1)
            for group in self._groups.values()
        ]

    def unpack(self, packed: Arrays) -> Arrays:
        """Undo `pack`."""
        arrays: list[Any] = [None] * len(self.arrays)
        for group, whole in zip(self._groups.values(), packed, strict=True):
            if len(group) == 1:
                arrays[group[0]] = whole
                continue
            ends = np.cumsum([self.arrays[i].size for i in group])
            for i, part in zip(
                group, jnp.split(whole, ends[:-1], axis=-1), strict=True
            ):
                arrays[i] = part.reshape(*part.shape[:-1], *self.arrays[i].shape)
        return arrays


def at(tree: Any, place: Any) -> Any:
    """Return the entries at a place, along axis 0, of all arrays of a tree."""
    return jax.tree.map(lambda array: array[place], tree)


def left(before: Any, after: Any, zeros: Callable = jnp.zeros_like) -> Any:
    """Return the tree of `after`, with the leaves of `before` or else zeros(leaf)."""
    old = dict(jax.tree_util.tree_leaves_with_path(before))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: old[path] if path in old else zeros(leaf), after
    )


def _replaced(values, places, new):
    """Return the values with new ones at some places."""
    new = dict(zip(places, new, strict=True))
    return [new.get(i, value) for i, value in enumerate(values)]


def _cotangent_of_block(stacked, place):
    if not isinstance(stacked, SymbolicZero):
        return stacked[place]
    zeros = np.zeros if stacked.dtype == jax.dtypes.float0 else jnp.zeros
    return zeros(stacked.shape[1:], stacked.dtype)


def _of_closed(is_open, cotangent):
    """Return the cotangent of closed blocks' updates, which were passed through."""
    if is_open is None or isinstance(cotangent, SymbolicZero):
        return None
    closed = ~is_open.reshape(-1, *[1] * (cotangent.ndim - 1))
    return jnp.where(closed, cotangent, 0)
