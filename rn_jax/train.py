# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation steps: pure functions made by keyword-only factories."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from rn_jax.metrics import classification_sums
from rn_jax.stochastic_depth import StochasticDepth, open_shares, sample_gates


@flax.struct.dataclass
class TrainState:
    """All that training carries from step to step, as plain pytrees.

    Attributes:
        step: i32[], steps taken.
        params, batch_stats: the model's variables.
        opt_state: Optax's.
        sums: metrics summed over the steps since the last evaluation. "gradient" is the
            mean magnitude of the first block's first kernel's gradient times the number
            of examples (Huang et al. 2016, figure 7).
        open_counts: f32[L], steps in which each block was open, of the whole run; a
            step in which it was open for a share of the examples counts by that share.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    sums: dict[str, jax.Array]
    open_counts: jax.Array


ZERO_SUMS = {"loss": 0.0, "correct": 0.0, "count": 0.0, "gradient": 0.0}


def create_state(
    key: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """The state before the first step.

    Args:
        key: for the parameters.
        model: one of rn_jax's.
        tx: the optimiser.
        image_shape: (H, W, C).
    """

    @jax.jit  # one compiled program instead of one per operation
    def create(key):
        images = jnp.zeros((1, *image_shape))
        variables = model.init({"params": key}, images, train=False)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(variables["params"]),
            sums=jax.tree.map(jnp.float32, ZERO_SUMS),
            open_counts=jnp.zeros(model.num_blocks),
        )

    return create(key)


def make_train_step(
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    preprocess: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    stochastic_depth: StochasticDepth | None = None,
    gates_from_step: int = 0,
    aux_loss_weight: float = 0.3,
    axis_name: str | None = None,
) -> Callable:
    """Makes the training step.

    Args:
        model: called with the gates that the step draws.
        tx: the optimiser.
        preprocess: (key, uint8[B, H, W, C], index of the first example in the global
            batch) -> normalised and augmented f[B, H, W, C].
        stochastic_depth: None is constant depth.
        gates_from_step: steps of constant depth before it begins.
        aux_loss_weight: of each auxiliary head's loss in the loss that is minimised and
            reported (Szegedy et al. 2015, section 5). Only GoogLeNet has such heads.
        axis_name: devices over which the batch is split. The gradient is that of the
            mean over the whole batch.

    Returns:
        step(state, batch, key) -> (state, metrics). `key` is the same at every step:
        randomness comes from `fold_in(key, state.step)`, so a resumed run draws what an
        uninterrupted one would. metrics: sums of this step, "grad_norm" (the norm of
        the gradient, before weight decay) and "open", f32[L].
    """

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        images, labels, mask = batch["image"], batch["label"], batch["mask"]
        augment_key, gates_key, dropout_key = jax.random.split(
            jax.random.fold_in(key, state.step), 3
        )
        first_index = jnp.int32(0)
        if axis_name is not None:
            first_index = lax.axis_index(axis_name) * len(labels)
            dropout_key = jax.random.fold_in(dropout_key, first_index)
        images = preprocess(augment_key, images, first_index)

        gates, open_blocks = None, jnp.ones(model.num_blocks)
        if stochastic_depth is not None:
            gates = sample_gates(
                gates_key, stochastic_depth, model.num_blocks, len(labels), first_index
            )
            if gates_from_step:
                gates = jnp.where(state.step < gates_from_step, 1, gates)
            open_blocks = open_shares(gates, len(labels))

        def loss_fn(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                gates=gates,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats", "aux_logits"],
            )
            sums = classification_sums(logits, labels, mask)
            for aux_logits in jax.tree.leaves(updates.get("aux_logits", {})):
                aux = classification_sums(aux_logits, labels, mask)
                sums["loss"] += aux_loss_weight * aux["loss"]
            return sums["loss"], (updates.get("batch_stats", {}), sums)

        grads, (batch_stats, sums) = jax.grad(loss_fn, has_aux=True)(state.params)
        # Devices meet here, at the end, and in BatchNorm: one that came early to a sum
        # that could be had sooner would wait for the others and do nothing else.
        grads, sums, open_blocks, batch_stats = lax.optimization_barrier(
            (grads, sums, open_blocks, batch_stats)
        )
        grads, sums = _sum_over((grads, sums), axis_name)
        grads = jax.tree.map(lambda g: g / sums["count"], grads)
        sums["gradient"] = first_gradient(grads) * sums["count"]
        # Equal already where BatchNorm is synchronised.
        open_blocks, batch_stats = _mean_over((open_blocks, batch_stats), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            sums=jax.tree.map(jnp.add, state.sums, sums),
            open_counts=state.open_counts + open_blocks,
        )
        metrics = {**sums, "grad_norm": optax.tree.norm(grads), "open": open_blocks}
        return state, metrics

    return step


def first_gradient(grads: Mapping[str, Any]) -> jax.Array:
    """Mean magnitude of the gradient of the first block's first kernel: f32[].

    Huang et al. 2016, figure 7, draw it for the first convolution of the first residual
    block. 0 for a network without blocks.

    Args:
        grads: of the parameters, in the layout that networks take.
    """
    if "stage1" not in grads:
        return jnp.zeros(())
    stage = grads["stage1"]
    if "first" in stage:
        block = stage["first"]
    elif "blocks" in stage:
        block = jax.tree.map(lambda g: g[0], stage["blocks"])
    else:
        block = stage[min(stage)]
    kernel = next(
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(block)
        if path[-1].key == "kernel" and path[0].key not in ("shortcut", "gate")
    )
    return jnp.abs(kernel).mean().astype(jnp.float32)


def make_eval_step(
    *,
    model: nn.Module,
    preprocess: Callable[[jax.Array], jax.Array],
    axis_name: str | None = None,
) -> Callable:
    """Makes the evaluation step: eval_step(variables, batch) -> sums of metrics.

    Args:
        model: called with `train=False`, so by the test rule of stochastic depth.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
        axis_name: devices over which the batch is split.
    """

    def eval_step(variables: dict[str, Any], batch: dict[str, jax.Array]):
        logits = model.apply(variables, preprocess(batch["image"]), train=False)
        sums = classification_sums(logits, batch["label"], batch["mask"])
        return _sum_over(sums, axis_name)

    return eval_step


def _sum_over(tree, axis_name):
    return tree if axis_name is None else lax.psum(tree, axis_name)


def _mean_over(tree, axis_name):
    return tree if axis_name is None else lax.pmean(tree, axis_name)
