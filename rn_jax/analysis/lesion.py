# SPDX-License-Identifier: Apache-2.0
"""Lesions: blocks taken out, or put in another order, of a trained network.

Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow
Networks", sections 4.1 and 4.2. A lesion is a vector of gates with zeros in it, so that
a whole study runs through one compiled function, and what is closed is not computed.
Random lesions are drawn from a NumPy generator on the host.
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
    """Makes count_errors(variables, gates, batches) -> i32[], compiled once.

    `batches` holds the examples as "image" uint8[N, B, H, W, C], "label" i32[N, B] and
    "mask" bool[N, B]; they may lie on several devices, split along B. `gates` are
    f32[L] and may have any values: none of them compiles the function again.

    Args:
        model: called with `train=False` and the gates.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
    """

    @jax.jit
    def count_errors(variables, gates, batches):
        def count(total, batch):
            images = preprocess(batch["image"])
            logits: Any = model.apply(variables, images, train=False, gates=gates)
            labels = batch["label"]
            predicted = logits.argmax(axis=-1).astype(labels.dtype)
            wrong = (predicted != labels) & batch["mask"]
            return total + wrong.sum(dtype=jnp.int32), None

        return lax.scan(count, jnp.int32(0), batches)[0]

    return count_errors


def without(gates: np.ndarray, closed: Sequence[int] | np.ndarray) -> np.ndarray:
    """The gates f32[L] with those of some blocks, by index from 0, set to 0."""
    gates = np.array(gates, np.float32)
    gates[list(closed)] = 0
    return gates


def draw_blocks(
    rng: np.random.Generator, blocks: Sequence[BlockInfo], k: int
) -> np.ndarray:
    """k different blocks that a gate acts on, all choices alike likely: i[k].

    Raises:
        ValueError: there are fewer.
    """
    skippable = [block.index for block in blocks if block.skippable]
    return np.sort(rng.choice(skippable, k, replace=False))


# --- Another order --------------------------------------------------------------------


def interchangeable(
    blocks: Sequence[BlockInfo], unstacked: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """All pairs of blocks that can change places, by index from 0.

    Both are of one stage, keep the shape of their input, and have variables of the same
    shapes.

    Args:
        blocks: `model.blocks`.
        unstacked: variables with a subtree for each block, as `unstack` gives them.
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
    """An order of the blocks after so many random swaps: i[L], place -> block.

    Args:
        rng: the generator.
        num_blocks: L.
        pairs: of places that may be swapped, as `interchangeable` gives them.
        swaps: how many, one after another; a later one may undo an earlier one.
    """
    order = np.arange(num_blocks)
    for i, j in rng.choice(pairs, swaps):
        order[[i, j]] = order[[j, i]]
    return order


def reorder(
    unstacked: Mapping[str, Any], model: Network, order: Sequence[int] | np.ndarray
) -> dict[str, Any]:
    """Variables of the network with its blocks in another order, ready to be applied.

    Args:
        unstacked: variables with a subtree for each block; they stay as they are.
        model: the network they belong to.
        order: i[L], place -> block, as `draw_order` gives it.
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
    """Kendall's rank correlation of an order with the trained one, in [-1, 1].

    1 - 4 d / (L (L - 1)), where d counts the pairs of blocks that changed sides.
    """
    from scipy import stats

    return float(stats.kendalltau(np.arange(len(order)), order).statistic)


# --- What to close first --------------------------------------------------------------


def closing_order(
    ranking: Sequence[float] | np.ndarray, blocks: Sequence[BlockInfo]
) -> list[int]:
    """Blocks that a gate acts on, those of the lowest rank first; ties: the last first.

    Args:
        ranking: f[L], such as the survival probabilities or the damage of deleting.
        blocks: `model.blocks`.
    """
    skippable = [block.index for block in blocks if block.skippable]
    return sorted(skippable, key=lambda block: (ranking[block], -block))
