# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation steps: pure functions made by keyword-only factories."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from rn_jax.errors import InputError
from rn_jax.metrics import classification_sums
from rn_jax.optim import NO_FEEDBACK, Feedback, LossScaling, RateScaledInside
from rn_jax.stochastic_depth import (
    StochasticDepth,
    open_shares,
    sample_gates,
    test_gates,
)


class TrainState(flax.struct.PyTreeNode):
    """All that training carries from step to step, as plain pytrees.

    Attributes:
        step: i32[], steps taken.
        params: of the model.
        batch_stats: of the model: BatchNorm's running statistics.
        opt_state: Optax's.
        sums: metrics summed over the steps since the last evaluation. "gradient" is the
            mean magnitude of the first block's first kernel's gradient times the number
            of examples (Huang et al. 2016, figure 7).
        open_counts: f32[L], steps in which each block was open, of the whole run; a
            step in which it was open for a share of the examples counts by that share.
        feedback: the state of `optim.Feedback`.
        loss_scale: the state of `optim.LossScaling`; empty without it.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    sums: dict[str, jax.Array]
    open_counts: jax.Array
    feedback: dict[str, Any]
    loss_scale: dict[str, jax.Array]


# What a step takes from a network beside the logits: new statistics, and loss terms.
COLLECTIONS = ("batch_stats", "aux_logits", "losses")
ZERO_SUMS = {"loss": 0.0, "correct": 0.0, "count": 0.0, "gradient": 0.0}


def create_state(
    key: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    feedback: Feedback = NO_FEEDBACK,
    loss_scaling: LossScaling | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
        key: for the parameters.
        model: one of rn_jax's.
        tx: the optimiser.
        image_shape: (H, W, C).
        feedback: of training on the learning rate.
        loss_scaling: for float16.

    Raises:
        InputError: the network has variables in collections other than "params" and
            "batch_stats", which training would not carry on. Values that are sown need
            not be.
    """

    @jax.jit  # one compiled program instead of one per operation
    def create(key):
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init({"params": key}, images, train=False)
        _check_collections(model, variables, images)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(variables["params"]),
            sums=jax.tree.map(jnp.float32, ZERO_SUMS),
            open_counts=jnp.zeros(model.num_blocks, jnp.float32),
            feedback=feedback.init(),
            loss_scale={} if loss_scaling is None else loss_scaling.init(),
        )

    return create(key)


def _check_collections(model, variables, images):
    """Raise an InputError if the network needs variables that training drops."""
    carried = {name: variables.get(name, {}) for name in ("params", "batch_stats")}
    if set(variables) == set(carried):
        return
    try:
        jax.eval_shape(partial(model.apply, train=False), carried, images)
    except flax.errors.FlaxError as error:
        names = ", ".join(sorted(set(variables) - {*carried, *COLLECTIONS}))
        raise InputError(
            'Training carries "params" and "batch_stats" from step to step, but this '
            f"network also has variables in {names}: train it with a training step of "
            "your own."
        ) from error


def step_rngs(key: jax.Array) -> dict[str, jax.Array]:
    """Return the keys that a training step gives to a network.

    Dropout has one of its own. Flax draws for streams of other names from "params".
    """
    return {"dropout": key, "params": jax.random.fold_in(key, 1)}


def make_train_step(
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    preprocess: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    stochastic_depth: StochasticDepth | None = None,
    gates_from_step: int = 0,
    aux_loss_weight: float = 0.3,
    feedback: Feedback = NO_FEEDBACK,
    loss_scaling: LossScaling | None = None,
    micro_batches: int = 1,
    axis_name: str | None = None,
) -> Callable:
    """Makes the training step.

    The loss is the mean cross-entropy, plus the losses of auxiliary heads, plus the sum
    of whatever blocks sow in the collection "losses". `make_rng` gives blocks keys of
    any name.

    Args:
        model: called with the gates that the step draws.
        tx: the optimiser.
        preprocess: (key, uint8[B, H, W, C], index of the first example in the global
            batch) -> normalised and augmented f[B, H, W, C].
        stochastic_depth: None is constant depth.
        gates_from_step: steps of constant depth before it begins.
        aux_loss_weight: of each auxiliary head's loss in the loss that is minimised and
            reported (Szegedy et al. 2015, section 5). Only GoogLeNet has such heads.
        feedback: factor of the learning rate from how training goes.
        loss_scaling: for models that compute in float16.
        micro_batches: parts of each device's share of the batch that are computed one
            after another, their gradients added up: the memory of one part, and the
            gradient of the whole, but for BatchNorm, whose statistics are those of each
            part. Gates of a mini-batch are the same for all parts.
        axis_name: devices over which the batch is split. The gradient is that of the
            mean over the whole batch.

    Returns:
        step(state, batch, key) -> (state, metrics). `key` is the same at every step:
        randomness comes from `fold_in(key, state.step)`, so a resumed run draws what an
        uninterrupted one would. metrics: sums of this step, "grad_norm" (the norm of
        the gradient, before weight decay; 0 for a step that loss scaling leaves out),
        "rate_factor" (f32[], of `feedback`) and "open", f32[L].

    Raises:
        InputError: several micro-batches with subsets of examples as gates.
    """
    subsets = stochastic_depth is not None and stochastic_depth.granularity == "subset"
    if micro_batches > 1 and subsets:
        raise InputError(
            'Several micro_batches cannot be combined with the granularity "subset", '
            "whose subsets are of the whole batch."
        )

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        batch_size = len(batch["label"])
        augment_key, gates_key, dropout_key = jax.random.split(
            jax.random.fold_in(key, state.step), 3
        )
        first_index = jnp.int32(0)
        if axis_name is not None:
            first_index = lax.axis_index(axis_name) * batch_size
            dropout_key = jax.random.fold_in(dropout_key, first_index)
        images = preprocess(augment_key, batch["image"], first_index)

        gates: Any = None
        open_blocks = jnp.ones(model.num_blocks, jnp.float32)
        if stochastic_depth is not None:
            gates = sample_gates(
                gates_key, stochastic_depth, model.num_blocks, batch_size, first_index
            )
            if gates_from_step:
                gates = jnp.where(state.step < gates_from_step, 1, gates)
            open_blocks = open_shares(gates, batch_size)

        loss_factor = state.loss_scale.get("factor", 1.0)
        grads, batch_stats, sums = accumulate_gradients(
            partial(objective, model, aux_loss_weight, loss_factor),
            state.params,
            state.batch_stats,
            (images, batch["label"], batch["mask"]),
            gates,
            dropout_key,
            micro_batches,
        )
        # Devices meet here, at the end, and in BatchNorm: one that came early to a sum
        # that could be had sooner would wait for the others and do nothing else.
        grads, sums, open_blocks, batch_stats = lax.optimization_barrier(
            (grads, sums, open_blocks, batch_stats)
        )
        grads, sums = _sum_over((grads, sums), axis_name)
        scale = sums["count"] * loss_factor
        grads = jax.tree.map(lambda g: g / scale.astype(g.dtype), grads)
        sums["gradient"] = first_gradient(grads) * sums["count"]
        # Equal already where BatchNorm is synchronised.
        open_blocks, batch_stats = _mean_over((open_blocks, batch_stats), axis_name)

        grad_norm = optax.tree.norm(grads)
        rate_factor = feedback.factor(state.feedback)
        params, opt_state = apply_gradients(
            tx, grads, state.opt_state, state.params, rate_factor
        )
        new = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            open_counts=state.open_counts + open_blocks,
            feedback=feedback.after_step(
                state.feedback, 100 * (1 - sums["correct"] / sums["count"])
            ),
        )
        if loss_scaling is not None:
            finite = jnp.isfinite(grad_norm)
            new = keep_if_finite(new, state, finite, loss_scaling)
            sums["gradient"] = jnp.where(finite, sums["gradient"], 0)
            # At a factor of 1 there is nothing left to try: the norm is reported.
            left_out = ~finite & (loss_factor > 1)
            grad_norm = jnp.where(left_out, 0, grad_norm)
        metrics = {
            **sums,
            "grad_norm": grad_norm,
            "rate_factor": rate_factor,
            "open": open_blocks,
        }
        return new.replace(sums=jax.tree.map(jnp.add, state.sums, sums)), metrics

    return step


def objective(
    model: nn.Module,
    aux_loss_weight: float,
    loss_factor: jax.Array | float,
    params: Any,
    batch_stats: Any,
    examples: tuple[jax.Array, jax.Array, jax.Array],
    gates: Any,
    dropout_key: jax.Array,
) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """Return the loss that is minimised, summed over examples and scaled.

    Args:
        model: called with `train=True`.
        aux_loss_weight: weight of each auxiliary head's loss.
        loss_factor: factor of the loss, from loss scaling.
        params: of the model.
        batch_stats: of the model.
        examples: (images f[B, H, W, C], labels i32[B], mask bool[B]).
        gates: of the model's call.
        dropout_key: for whatever the network draws.

    Returns:
        The loss f32[], with (new batch_stats, sums of metrics) beside it.
    """
    images, labels, mask = examples
    logits, updates = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        gates=gates,
        rngs=step_rngs(dropout_key),
        mutable=COLLECTIONS,
    )
    sums = classification_sums(logits, labels, mask)
    for aux_logits in jax.tree.leaves(updates.get("aux_logits", {})):
        aux = classification_sums(aux_logits, labels, mask)
        sums["loss"] += aux_loss_weight * aux["loss"]
    for sown in jax.tree.leaves(updates.get("losses", {})):
        sums["loss"] += sums["count"] * jnp.sum(sown, dtype=jnp.float32)
    return sums["loss"] * loss_factor, (updates.get("batch_stats", {}), sums)


def accumulate_gradients(
    loss_fn: Callable,
    params: Any,
    batch_stats: Any,
    examples: tuple[jax.Array, ...],
    gates: Any,
    dropout_key: jax.Array,
    micro_batches: int,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Return the gradient of a batch, computed in equal parts one after another.

    Args:
        loss_fn: (params, batch_stats, examples, gates, key) as `objective` has them.
        params: to which the gradient belongs.
        batch_stats: which pass from part to part.
        examples: arrays whose first axis is the batch's.
        gates: f32[L] for all parts, or f32[L, B], which are split as the batch is.
        dropout_key: split into a key for each part.
        micro_batches: the number of parts, which divides B.

    Returns:
        (gradient by `params`, batch_stats, sums of metrics).
    """
    gradient = jax.grad(loss_fn, has_aux=True)
    if micro_batches == 1:
        grads, aux = gradient(params, batch_stats, examples, gates, dropout_key)
        return grads, *aux

    def split(array, axis=0):
        return jnp.stack(jnp.split(array, micro_batches, axis))

    by_example = gates is not None and gates.ndim == 2
    keys = jax.random.split(dropout_key, micro_batches)
    own_gates = (split(gates, axis=1),) if by_example else ()

    def add(carry, part):
        batch_stats, total = carry
        examples, key, *own = part
        grads, (batch_stats, sums) = gradient(
            params, batch_stats, examples, own[0] if own else gates, key
        )
        return (batch_stats, jax.tree.map(jnp.add, total, (grads, sums))), None

    zeros = {name: jnp.float32(0) for name in ("loss", "correct", "count")}
    start = jax.tree.map(jnp.zeros_like, params), zeros
    parts = (jax.tree.map(split, examples), keys, *own_gates)
    (batch_stats, (grads, sums)), _ = lax.scan(add, (batch_stats, start), parts)
    return grads, batch_stats, sums


def apply_gradients(
    tx: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    rate_factor: jax.Array,
) -> tuple[Any, Any]:
    """Return parameters and optimiser state after a step at a scaled learning rate.

    Args:
        tx: the optimiser; a `RateScaledInside` scales the rate itself.
        grads: gradient of the mean loss.
        opt_state: of `tx`.
        params: to be updated.
        rate_factor: f32[], by which the learning rate is multiplied.
    """
    if isinstance(tx, RateScaledInside):
        updates, opt_state = tx.update(
            grads, opt_state, params, rate_factor=rate_factor
        )
    else:
        updates, opt_state = tx.update(grads, opt_state, params)
        updates = jax.tree.map(lambda u: rate_factor.astype(u.dtype) * u, updates)
    return optax.apply_updates(params, updates), opt_state


def keep_if_finite(
    new: TrainState, old: TrainState, finite: jax.Array, loss_scaling: LossScaling
) -> TrainState:
    """Return the state after a step of dynamic loss scaling.

    Args:
        new: the state after the step.
        old: the state before it, whose parameters, statistics and optimiser state are
            kept if the gradient was not finite.
        finite: bool[], whether it was.
        loss_scaling: the rule of the factor.
    """

    def choose(new, old):
        # The optimiser's count of steps goes on, as ours does.
        return jnp.where(finite, new, old) if new.dtype.kind == "f" else new

    names = ("params", "batch_stats", "opt_state")
    kept = {
        name: jax.tree.map(choose, getattr(new, name), getattr(old, name))
        for name in names
    }
    scale = loss_scaling.after_step(old.loss_scale, finite)
    return new.replace(**kept, loss_scale=scale)


def first_gradient(grads: Mapping[str, Any]) -> jax.Array:
    """Mean magnitude of the gradient of the first block's first kernel: f32[].

    Huang et al. 2016, figure 7, draw it for the first convolution of the first residual
    block. 0 for a network without blocks.

    Args:
        grads: of the parameters, in the layout that networks take.
    """
    if "stage1" not in grads:
        return jnp.float32(0)
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

    A batch of several views of each image, uint8[B, V, H, W, C], is judged by the mean
    of their V softmax outputs, as 10 crops are in Krizhevsky et al. 2012.

    Args:
        model: called with `train=False`, so by the test rule of stochastic depth.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
        axis_name: devices over which the batch is split.
    """

    def eval_step(variables: dict[str, Any], batch: dict[str, jax.Array]):
        images = batch["image"]
        views = images.shape[1] if images.ndim == 5 else None
        if views is not None:
            images = images.reshape(-1, *images.shape[2:])
        logits: Any = model.apply(variables, preprocess(images), train=False)
        if views is not None:
            logits = log_mean_softmax(logits.reshape(-1, views, logits.shape[-1]))
        sums = classification_sums(logits, batch["label"], batch["mask"])
        return _sum_over(sums, axis_name)

    return eval_step


def log_mean_softmax(logits: jax.Array) -> jax.Array:
    """Logarithm of the softmax's mean over views: f[B, V, K] -> f32[B, K]."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jax.nn.logsumexp(log_probs, axis=1) - jnp.log(logits.shape[1])


def make_statistics_step(
    *,
    model: nn.Module,
    preprocess: Callable[[jax.Array], jax.Array],
    axis_name: str | None = None,
) -> Callable:
    """Makes the step that recomputes BatchNorm's statistics over training examples.

    He et al. 2015 test with averages over a large training batch instead of moving
    ones (the README of their released networks). Every batch is normalised by its own
    statistics, as in training, and under the test rule of stochastic depth, which is
    the network that is tested; dropout stays as it is in training.

    Args:
        model: whose `norm` takes a `momentum`.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
        axis_name: devices over which the batch is split.

    Returns:
        step(variables, batch, number) -> batch_stats: the mean and variance of all
        examples of the batches 1 .. `number`, of equal size, where `variables` holds
        those of the batches before (for the first one anything finite).
    """
    measuring = model.clone(norm=partial(model.norm, momentum=0.0))
    gates = None
    if model.stochastic_depth is not None:
        gates = test_gates(model.stochastic_depth, model.num_blocks)

    def step(variables: dict[str, Any], batch: dict[str, jax.Array], number: jax.Array):
        dropout_key = jax.random.fold_in(jax.random.key(0), number)
        if axis_name is not None:
            dropout_key = jax.random.fold_in(dropout_key, lax.axis_index(axis_name))
        _, updates = measuring.apply(
            variables,
            preprocess(batch["image"]),
            train=True,
            gates=gates,
            rngs=step_rngs(dropout_key),
            mutable=COLLECTIONS,
        )

        def merge(before, found):
            mean = _mean_over(found["mean"], axis_name)
            spread = _mean_over(lax.square(found["mean"] - mean), axis_name)
            var = _mean_over(found["var"], axis_name) + spread
            # Chan, Golub and LeVeque 1983, for parts of equal size.
            share = 1 / jnp.asarray(number, mean.dtype)
            apart = mean - before["mean"]
            return {
                "mean": before["mean"] + share * apart,
                "var": before["var"]
                + share * (var - before["var"])
                + share * (1 - share) * lax.square(apart),
            }

        return jax.tree.map(
            merge,
            flax.core.unfreeze(variables["batch_stats"]),
            updates["batch_stats"],
            is_leaf=lambda tree: "mean" in tree,
        )

    return step


def _sum_over(tree, axis_name):
    return tree if axis_name is None else lax.psum(tree, axis_name)


def _mean_over(tree, axis_name):
    return tree if axis_name is None else lax.pmean(tree, axis_name)
