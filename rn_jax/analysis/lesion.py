# SPDX-License-Identifier: Apache-2.0
"""Lesions: deleting and reordering the blocks of a trained network.

Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow
Networks", sections 4.1 and 4.2. A lesion is a vector of gates with zeros, so that a
study compiles one function and closed blocks are not computed. Random lesions are drawn
on the host with a NumPy generator.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rn_jax.models.network import Network
from rn_jax.models.trunk import BlockInfo, stack, unstack


def make_count_errors(
    *, model: Network, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable:
    """Make count_errors(variables, gates, batches) -> i32[], compiled once.

    `batches` has "image" uint8[N, B, H, W, C], "label" i32[N, B] and "mask" bool[N, B],
    possibly split over devices along B. `gates`, f32[L], may have any values without
    another compilation.

    Args:
        model: network, called with `train=False` and the gates.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
    """

    @jax.jit
    def count_errors(variables, gates, batches):
        def count(total, batch):
            images = preprocess(batch["image"])  # (B, H, W, C)
            # (B, K)
            logits: Any = model.apply(variables, images, train=False, gates=gates)
            labels = batch["label"]  # (B,)
            predicted = logits.argmax(axis=-1).astype(labels.dtype)
            wrong = (predicted != labels) & batch["mask"]  # (B,)
            return total + wrong.sum(dtype=jnp.int32), None

        return lax.scan(count, jnp.int32(0), batches)[0]

    return count_errors


def without(gates: np.ndarray, closed: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the gates f32[L] with those of some blocks, by index from 0, set to 0."""
    gates = np.array(gates, np.float32)  # (num_blocks,)
    gates[list(closed)] = 0
    return gates


def draw_blocks(
    rng: np.random.Generator, blocks: Sequence[BlockInfo], k: int
) -> np.ndarray:
    """Draw k different skippable blocks uniformly: their indices, i[k], in order.

    Raises:
        ValueError: there are fewer than k.
    """
    skippable = [block.index for block in blocks if block.skippable]
    return np.sort(rng.choice(skippable, k, replace=False))


# --- Reordering -----------------------------------------------------------------------


def interchangeable(
    blocks: Sequence[BlockInfo], unstacked: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """Return all pairs of blocks that can be swapped, by index from 0.

    They are in the same stage, keep the shape of their input, and have variables of the
    same shapes.

    Args:
        blocks: `model.blocks`.
        unstacked: variables with a subtree for each block, see `unstack`.
    """

    def kind(block):
        trees = [_at(tree, block.name) for tree in unstacked.values()]
        leaves, structure = jax.tree.flatten(trees)
        return block.stage, structure, tuple(leaf.shape for leaf in leaves)

    kinds = {block.index: kind(block) for block in blocks if block.same_shape}
    return [(i, j) for i in kinds for j in kinds if i < j and kinds[i] == kinds[j]]


def draw_order(
    rng: np.random.Generator,
    num_blocks: int,
    pairs: Sequence[tuple[int, int]],
    swaps: int,
) -> np.ndarray:
    """Draw an order of the blocks by random swaps: i[L], position -> block.

    Args:
        rng: generator of the swaps.
        num_blocks: L.
        pairs: positions that may be swapped, see `interchangeable`.
        swaps: number of successive swaps; one may undo another.
    """
    order = np.arange(num_blocks)
    for i, j in rng.choice(pairs, swaps):
        order[[i, j]] = order[[j, i]]
    return order


def reorder(
    unstacked: Mapping[str, Any], model: Network, order: Sequence[int] | np.ndarray
) -> dict[str, Any]:
    """Return the variables of the network with its blocks in another order, stacked.

    Args:
        unstacked: variables with a subtree for each block, see `unstack`.
        model: their network.
        order: i[L], position -> block, see `draw_order`.
    """
    names = [block.name for block in model.blocks]
    variables, unstacked = unstack(unstacked), unstack(unstacked)  # new dicts
    for collection, tree in variables.items():
        for place, block in enumerate(order):
            stage, name = names[place].split("/")
            if stage in tree:
                tree[stage][name] = _at(unstacked[collection], names[block])
    return stack(variables, model)


def _at(tree, path):
    for name in path.split("/"):
        tree = tree.get(name, {})
    return tree


def kendall_tau(order: Sequence[int] | np.ndarray) -> float:
    """Return Kendall's rank correlation of an order with the trained one, in [-1, 1].

    It is 1 - 4 d / (L (L - 1)) for d pairs of blocks in reversed order.
    """
    from scipy import stats

    return float(stats.kendalltau(np.arange(len(order)), order).statistic)


# --- Closing blocks one after another -------------------------------------------------


def closing_order(
    ranking: Sequence[float] | np.ndarray, blocks: Sequence[BlockInfo]
) -> list[int]:
    """Return the skippable blocks by ascending rank; of equal ranks, the last first.

    Args:
        ranking: f[L], such as survival probabilities or the damage of deletions.
        blocks: `model.blocks`.
    """
    skippable = [block.index for block in blocks if block.skippable]
    return sorted(skippable, key=lambda block: (ranking[block], -block))
