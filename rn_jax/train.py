# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation steps: pure functions made by keyword-only factories.

Shapes: B examples on this device, L blocks (`num_blocks`), K classes.
"""

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
from rn_jax.optim import NO_FEEDBACK, LossScaling, RateController, RateScaledInside
from rn_jax.stochastic_depth import open_shares


class TrainState(flax.struct.PyTreeNode):
    """All that training carries from step to step, as plain pytrees.

    Attributes:
        step: i32[], steps taken.
        params: parameters of the model.
        batch_stats: BatchNorm's running statistics.
        opt_state: state of the optimiser.
        sums: metrics summed over the steps since the last evaluation. "gradient" is
            `first_gradient` times the number of examples.
        open_counts: f32[L], number of steps of the run in which each block was open; a
            step in which it was open for a share of the examples adds that share.
        feedback: state of `optim.RateController`.
        loss_scale: state of `optim.LossScaling`; empty without it.
        ema: averages of "params" and "batch_stats"; empty without `ema_decay`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    sums: dict[str, jax.Array]
    open_counts: jax.Array
    feedback: dict[str, Any]
    loss_scale: dict[str, jax.Array]
    ema: dict[str, Any] = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that are evaluated: the averages, if there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


# Collections that a step reads from a network: new statistics and terms of the loss.
COLLECTIONS = ("batch_stats", "aux_logits", "losses")
ZERO_SUMS = {"loss": 0.0, "correct": 0.0, "count": 0.0, "gradient": 0.0}


def create_state(
    key: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    feedback: RateController = NO_FEEDBACK,
    loss_scaling: LossScaling | None = None,
    ema_decay: float | None = None,
) -> TrainState:
    """Return the state before the first step.

    Args:
        key: PRNG key of the parameters.
        image_shape: (H, W, C).
        model, tx, feedback, loss_scaling, ema_decay: as in `make_train_step`.

    Raises:
        InputError: the network needs variables in collections other than "params" and
            "batch_stats", which training would lose. Sown values are allowed.
    """

    @jax.jit  # one compiled program instead of one per operation
    def create(key):
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init({"params": key}, images, train=False)
        _check_collections(model, variables, images)
        trained = {name: variables.get(name, {}) for name in ("params", "batch_stats")}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            **trained,
            opt_state=tx.init(variables["params"]),
            sums=jax.tree.map(jnp.float32, ZERO_SUMS),
            open_counts=jnp.zeros(model.num_blocks, jnp.float32),
            feedback=feedback.init(),
            loss_scale={} if loss_scaling is None else loss_scaling.init(),
            # Copies, since a step that gets its state donated cannot get it twice.
            ema={} if ema_decay is None else jax.tree.map(jnp.copy, trained),
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
    """Return the PRNG keys of a network in a training step.

    Flax derives streams of names other than "dropout" from "params".
    """
    return {"dropout": key, "params": jax.random.fold_in(key, 1)}


def make_train_step(
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    preprocess: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    gates_from_step: int = 0,
    aux_loss_weight: float = 0.3,
    label_smoothing: float = 0.0,
    mix: Callable | None = None,
    feedback: RateController = NO_FEEDBACK,
    loss_scaling: LossScaling | None = None,
    ema_decay: float | None = None,
    micro_batches: int = 1,
    axis_name: str | None = None,
) -> Callable:
    """Make the training step.

    The loss is the mean cross-entropy, plus the weighted losses of auxiliary heads,
    plus the sum of all values that blocks sow in the collection "losses". Blocks get
    keys of any name from `make_rng`. Parameters and statistics of the network's
    `frozen` parts stay the same bit for bit, whatever the optimiser makes of a gradient
    of 0.

    Args:
        model: network, whose `stochastic_depth` decides which gates are drawn.
        tx: optimiser.
        preprocess: (key, uint8[B, H, W, C], index of the first example in the global
            batch) -> normalised and augmented f[B, H, W, C].
        gates_from_step: number of steps of constant depth before stochastic depth.
        aux_loss_weight: weight of each auxiliary head's loss in the loss that is
            minimised and reported (Szegedy et al. 2015, section 5; GoogLeNet alone).
        label_smoothing: share of every target that is spread evenly over the classes
            (Szegedy et al. 2016, section 7).
        mix: (key, images f[B, H, W, C], targets f32[B, K], axis_name) -> images and
            targets, such as a partial `data.mix`. The key depends on the step alone.
        feedback: controller of the learning rate.
        loss_scaling: loss scaling for float16.
        ema_decay: decay of the averages of parameters and statistics, see `averaged`.
        micro_batches: number of parts into which each device's share of the batch is
            split. Their gradients are computed one after another and added up, which
            takes the memory of one part and gives the gradient of the whole, except
            that BatchNorm uses the statistics of each part. Gates of a mini-batch are
            the same for all parts.
        axis_name: axis of the devices over which the batch is split. The gradient is
            that of the mean over the whole batch.

    Returns:
        step(state, batch, key) -> (state, metrics). `key` is the same at every step:
        randomness comes from `fold_in(key, state.step)`, so that a resumed run equals
        an uninterrupted one. metrics: sums of this step, "grad_norm" (norm of the
        gradient before weight decay; 0 if loss scaling skips the step), "rate_factor"
        (f32[], of `feedback`) and "open" (f32[L]).

    Raises:
        InputError: several micro-batches with granularity "subset".
    """
    settings = model.stochastic_depth
    if micro_batches > 1 and settings and settings.granularity == "subset":
        raise InputError(
            'Several micro_batches cannot be combined with the granularity "subset", '
            "which draws its subsets from the whole batch."
        )

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        batch_size = len(batch["label"])
        step_key = jax.random.fold_in(key, state.step)
        augment_key, gates_key, dropout_key = jax.random.split(step_key, 3)
        first_index = jnp.int32(0)
        if axis_name is not None:
            first_index = lax.axis_index(axis_name) * batch_size
            dropout_key = jax.random.fold_in(dropout_key, first_index)
        images = preprocess(augment_key, batch["image"], first_index)  # (B, H, W, C)
        targets = batch["label"]  # (B,), or (B, K) if they are not one-hot
        if label_smoothing or mix is not None:
            targets = jax.nn.one_hot(targets, model.num_classes, dtype=jnp.float32)
            targets = optax.smooth_labels(targets, label_smoothing)
        if mix is not None:  # after the three keys of `split`
            mix_key = jax.random.fold_in(step_key, 3)
            images, targets = mix(mix_key, images, targets, axis_name)

        # Draw gates.
        gates, open_blocks = draw_gates(  # as in `sample_gates`; (num_blocks,)
            *(gates_key, model, batch_size, first_index),
            from_step=gates_from_step,
            step=state.step,
        )

        # Gradients.
        loss_factor = state.loss_scale.get("factor", 1.0)
        grads, batch_stats, sums = accumulate_gradients(
            partial(objective, model, aux_loss_weight, loss_factor),
            state.params,
            state.batch_stats,
            (images, targets, batch["mask"]),
            gates,
            dropout_key,
            micro_batches,
        )

        # Combine devices.
        grads, sums, batch_stats, open_blocks = combine_devices(
            grads, sums, batch_stats, open_blocks, axis_name
        )
        scale = sums["count"] * loss_factor
        grads = jax.tree.map(lambda g: g / scale.astype(g.dtype), grads)

        # Update.
        batch_stats = keep_frozen(model, batch_stats, state.batch_stats)
        rate_factor = feedback.factor(state.feedback)
        params, opt_state = apply_gradients(
            tx, grads, state.opt_state, state.params, rate_factor
        )
        params = keep_frozen(model, params, state.params)
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
        if ema_decay is not None:
            trained = {"params": params, "batch_stats": batch_stats}
            new = new.replace(ema=averaged(state.ema, trained, state.step, ema_decay))

        # Account.
        grad_norm = optax.tree.norm(grads)
        sums["gradient"] = first_gradient(grads) * sums["count"]
        if loss_scaling is not None:
            finite = jnp.isfinite(grad_norm)
            new = keep_if_finite(new, state, finite, loss_scaling)
            sums["gradient"] = jnp.where(finite, sums["gradient"], 0)
            # A factor of 1 cannot be halved, so that norm is reported as it is.
            skipped = ~finite & (loss_factor > 1)
            grad_norm = jnp.where(skipped, 0, grad_norm)
        metrics = {
            **sums,
            "grad_norm": grad_norm,
            "rate_factor": rate_factor,
            "open": open_blocks,
        }
        return new.replace(sums=jax.tree.map(jnp.add, state.sums, sums)), metrics

    return step


def from_examples(step: Callable, image_shape: tuple[int, int, int]) -> Callable:
    """Let a training step gather its batch from examples that the device has.

    Args:
        step: as `make_train_step` returns it.
        image_shape: (H, W, C).

    Returns:
        step(state, batch, key) -> (state, metrics), with a batch of "images"
        uint8[N, H * W * C], "labels" i32[N] and "order" i32[B, S]: the indices of the
        examples of the S steps of the epoch. Images are rows, because a TPU would pad
        an axis of 3 channels to 128.
    """

    def gathering(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        order = batch["order"]
        index = order[:, state.step % order.shape[1]]  # (B,)
        examples = {
            "image": batch["images"][index].reshape(-1, *image_shape),  # (B, H, W, C)
            "label": batch["labels"][index],  # (B,)
            "mask": jnp.ones(index.shape, bool),  # (B,)
        }
        return step(state, examples, key)

    return gathering


def draw_gates(
    key: jax.Array,
    model: nn.Module,
    batch_size: int,
    first_index: int | jax.Array,
    *,
    from_step: int,
    step: jax.Array,
) -> tuple[Any, jax.Array]:
    """Return the gates of a training step and the share of examples in each block.

    Args:
        key, batch_size, first_index: as in `sample_gates`.
        model: network that may draw gates; see `Network.draws_gates`.
        from_step: number of steps of constant depth before gates are drawn.
        step: i32[], steps taken.

    Returns:
        (gates as in `sample_gates`, or None for constant depth; f32[L]).
    """
    if not model.draws_gates:
        return None, jnp.ones(model.num_blocks, jnp.float32)
    gates: Any = model.draw_gates(key, batch_size, first_index)
    if from_step:
        constant = step < from_step
        gates = jax.tree.map(lambda gate: jnp.where(constant, 1, gate), gates)
    gates = model.as_at_test_where_frozen(gates)
    return gates, open_shares(gates, batch_size)


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
        model: network, called with `train=True`.
        aux_loss_weight: weight of each auxiliary head's loss.
        loss_factor: factor of the loss, from loss scaling.
        params: parameters of the model.
        batch_stats: BatchNorm's statistics.
        examples: (images f[B, H, W, C], labels i32[B] or f32[B, K], mask bool[B]), see
            `classification_sums`.
        gates: gates of the model: f32[L], f32[L, B], `Subset` or None.
        dropout_key: PRNG key of everything that the network draws.

    Returns:
        (loss f32[], (new batch_stats, sums of metrics)).
    """
    images, labels, mask = examples  # (B, H, W, C), (B,) or (B, K), (B,)
    logits, updates = model.apply(  # (B, K)
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
        loss_fn: (params, batch_stats, examples, gates, key) -> the result of
            `objective`.
        params: parameters, by which the loss is differentiated.
        batch_stats: statistics, passed from part to part.
        examples: arrays with the examples along axis 0.
        gates: f32[L] or f32[L, 1] for all parts, or f32[L, B], split like the examples;
            or `Shaken` of the latter two.
        dropout_key: PRNG key, split into one for each part.
        micro_batches: number of parts; divides B.

    Returns:
        (gradient, batch_stats, sums of metrics).
    """
    gradient = jax.grad(loss_fn, has_aux=True)
    if micro_batches == 1:
        grads, aux = gradient(params, batch_stats, examples, gates, dropout_key)
        return grads, *aux

    def split(array, axis=0):
        return jnp.stack(jnp.split(array, micro_batches, axis))

    # Not f32[L, 1], which are the same for all parts.
    by_example = any(g.shape[1:] > (1,) for g in jax.tree.leaves(gates))
    keys = jax.random.split(dropout_key, micro_batches)
    own_gates = (jax.tree.map(partial(split, axis=1), gates),) if by_example else ()

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


def combine_devices(
    grads: Any,
    sums: dict[str, jax.Array],
    batch_stats: Any,
    open_blocks: jax.Array,
    axis_name: str | None,
) -> tuple[Any, dict[str, jax.Array], Any, jax.Array]:
    """Combine gradients, sums and statistics over all devices.

    The first two are added up, the others are averaged.

    Args:
        grads: gradient of the loss summed over this device's examples.
        sums: sums of metrics.
        batch_stats: BatchNorm's statistics, already equal if it is synchronised.
        open_blocks: f32[L], shares of this device's examples.
        axis_name: axis of the devices; None: there is one.
    """
    # The barrier keeps all sums at the end of the step: a device that reached an
    # earlier one first would wait there for the others.
    grads, sums, batch_stats, open_blocks = lax.optimization_barrier(
        (grads, sums, batch_stats, open_blocks)
    )
    grads, sums = _sum_over((grads, sums), axis_name)
    batch_stats, open_blocks = _mean_over((batch_stats, open_blocks), axis_name)
    return grads, sums, batch_stats, open_blocks


def apply_gradients(
    tx: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    rate_factor: jax.Array,
) -> tuple[Any, Any]:
    """Return parameters and optimiser state after a step at a scaled learning rate.

    Args:
        tx: optimiser; a `RateScaledInside` scales the rate itself.
        grads: gradient of the mean loss.
        opt_state: state of `tx`.
        params: parameters to update.
        rate_factor: f32[], factor of the learning rate.
    """
    if isinstance(tx, RateScaledInside):
        updates, opt_state = tx.update(
            grads, opt_state, params, rate_factor=rate_factor
        )
    else:
        updates, opt_state = tx.update(grads, opt_state, params)
        updates = jax.tree.map(lambda u: rate_factor.astype(u.dtype) * u, updates)
    return optax.apply_updates(params, updates), opt_state


def keep_frozen(
    model: nn.Module, new: Mapping[str, Any], old: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a collection after a step, with the old variables of frozen parts.

    Weight decay and the momentum of earlier steps move parameters whose gradient is 0,
    and a mean over devices may round.

    Args:
        model: the network, with its `frozen` parts.
        new, old: a collection after and before the step.
    """
    frozen = model.frozen_modules
    return {name: old[name] if name in frozen else new[name] for name in new}


def averaged(ema: Any, new: Any, step: jax.Array, decay: float) -> Any:
    """Return the moving averages after a step: decay * ema + (1 - decay) * new.

    Polyak and Juditsky 1992 average the parameters of all steps evenly. This average
    forgets those of more than about 1 / (1 - decay) steps ago. As in TensorFlow's
    `ExponentialMovingAverage`, the decay is at most (1 + step) / (10 + step), so that
    the initial parameters do not outlast the first steps.

    Args:
        ema: averages, which begin as the initial values.
        new: values after the step.
        step: i32[], number of earlier steps.
        decay: largest decay, in 0 .. 1.
    """
    steps = step.astype(jnp.float32)
    share = 1 - jnp.minimum(decay, (1 + steps) / (10 + steps))
    return jax.tree.map(lambda e, x: e + share.astype(e.dtype) * (x - e), ema, new)


def keep_if_finite(
    new: TrainState, old: TrainState, finite: jax.Array, loss_scaling: LossScaling
) -> TrainState:
    """Return the state after a step of dynamic loss scaling.

    Args:
        new: state after the step.
        old: state before it, whose parameters, statistics, averages and optimiser state
            are kept if the gradient was not finite.
        finite: bool[], whether the gradient was finite.
        loss_scaling: rule for the factor.
    """

    def choose(new, old):
        # Integers count steps, and a skipped step counts.
        return jnp.where(finite, new, old) if new.dtype.kind == "f" else new

    names = ("params", "batch_stats", "opt_state", "ema")
    kept = {
        name: jax.tree.map(choose, getattr(new, name), getattr(old, name))
        for name in names
    }
    scale = loss_scaling.after_step(old.loss_scale, finite)
    return new.replace(**kept, loss_scale=scale)


def first_gradient(grads: Mapping[str, Any]) -> jax.Array:
    """Return the mean magnitude of the first block's first kernel's gradient, f32[].

    Huang et al. 2016, figure 7, show it for the first convolution of the first residual
    block. It is 0 for a network without blocks.

    Args:
        grads: gradient by the parameters, in the layout of `model.apply`.
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
    """Make the evaluation step: eval_step(variables, batch) -> sums of metrics.

    For a batch of V views of each image, uint8[B, V, H, W, C], predictions are the mean
    of the V softmax outputs, as for the 10 crops of Krizhevsky et al. 2012.

    Args:
        model: network, called with `train=False`: the test rule of stochastic depth.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
        axis_name: axis of the devices over which the batch is split.
    """

    def eval_step(variables: dict[str, Any], batch: dict[str, jax.Array]):
        images = batch["image"]  # (B, H, W, C) or (B, V, H, W, C)
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
    """Return the logarithm of the mean softmax over views: f[B, V, K] -> f32[B, K]."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jax.nn.logsumexp(log_probs, axis=1) - jnp.log(logits.shape[1])


def make_statistics_step(
    *,
    model: nn.Module,
    preprocess: Callable[[jax.Array], jax.Array],
    axis_name: str | None = None,
) -> Callable:
    """Make the step that recomputes BatchNorm's statistics over training examples.

    He et al. 2015 test with averages over a large training batch instead of moving
    averages (README of their released networks). Every batch is normalised by its own
    statistics and dropout is on, as in training, but gates follow the test rule of
    stochastic depth.

    Args:
        model: network whose `norm` has a `momentum`, or which has no statistics.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
        axis_name: axis of the devices over which the batch is split.

    Returns:
        step(variables, batch, number) -> batch_stats: mean and variance over the
        examples of batches 1 .. `number`, of equal size. `variables` holds those of the
        earlier batches (for the first one, any finite values). Those of frozen parts
        stay the same.
    """
    gates = model.eval_gates() if model.draws_gates else None

    def step(variables: dict[str, Any], batch: dict[str, jax.Array], number: jax.Array):
        if not variables["batch_stats"]:
            return {}
        measuring = model.clone(norm=partial(model.norm, momentum=0.0))
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
            change = mean - before["mean"]
            return {
                "mean": before["mean"] + share * change,
                "var": before["var"]
                + share * (var - before["var"])
                + share * (1 - share) * lax.square(change),
            }

        merged = jax.tree.map(
            merge,
            flax.core.unfreeze(variables["batch_stats"]),
            updates["batch_stats"],
            is_leaf=lambda tree: "mean" in tree,
        )
        return keep_frozen(model, merged, variables["batch_stats"])

    return step


def _sum_over(tree, axis_name):
    return tree if axis_name is None else lax.psum(tree, axis_name)


def _mean_over(tree, axis_name):
    return tree if axis_name is None else lax.pmean(tree, axis_name)
