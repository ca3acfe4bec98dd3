# SPDX-License-Identifier: Apache-2.0
"""Optimisers and learning-rate schedules of the residual-network papers in Optax."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from rn_jax.errors import InputError, must_be


def piecewise_schedule(
    learning_rate: float,
    *,
    drops: Sequence[int] = (),
    factor: float = 0.1,
    warmup_steps: int = 0,
    warmup_learning_rate: float = 0.01,
    warmup_form: str = "constant",
) -> optax.Schedule:
    """Return a piecewise-constant learning rate with a warm-up.

    Args:
        learning_rate: rate from the end of the warm-up to the first drop.
        drops: steps at which the rate is multiplied by `factor`.
        factor: 0.1 in all papers here.
        warmup_steps: number of steps of the warm-up (about 400 for ResNet-110 in He et
            al. 2015, section 4.2).
        warmup_learning_rate: rate of a constant warm-up, and at the start of a linear
            one.
        warmup_form: "constant", or "linear" for a rate that rises in equal steps to
            `learning_rate` (Goyal et al. 2017, section 2.2, gradual warm-up).

    Returns:
        A function of the step.

    Raises:
        InputError: the drops do not increase, or one is within the warm-up; or
            `warmup_form` is unknown.
    """
    boundaries = [warmup_steps, *drops] if warmup_steps else list(drops)
    if sorted(set(boundaries)) != boundaries:
        raise InputError(
            "The learning rate's drops must come one after another and after the "
            f"warm-up, but the steps of warm-up and drops are {boundaries}."
        )
    rates = [learning_rate * factor**i for i in range(len(drops) + 1)]
    parts = [optax.constant_schedule(rate) for rate in rates]
    if warmup_steps:
        warmup = warmup_learning_rate, learning_rate, warmup_steps, warmup_form
        parts.insert(0, _warmup(*warmup))
    return optax.join_schedules(parts, boundaries)


WARMUP_FORMS = ("constant", "linear")


def _warmup(first_rate, last_rate, steps, form):
    if form not in WARMUP_FORMS:
        raise must_be("warmup_form", '"constant" or "linear"', form)
    if form == "constant":
        return optax.constant_schedule(first_rate)
    return _of_float(optax.linear_schedule(first_rate, last_rate, steps))


def _of_float(schedule):  # Optax would mix an integer with floats
    return lambda step: schedule(jnp.asarray(step, jnp.float32))


def cosine_schedule(learning_rate: float, **lengths: Any) -> optax.Schedule:
    """Return half a cosine that ends at 0 (Loshchilov and Hutter 2017, equation 5).

    Arguments, result and errors are those of `linear_schedule`.
    """
    return _to_zero(optax.cosine_decay_schedule, learning_rate, **lengths)


def linear_schedule(learning_rate: float, **lengths: Any) -> optax.Schedule:
    """Return a rate that decreases in equal steps and ends at 0.

    Args:
        learning_rate: rate at the end of the warm-up.
        lengths: `total_steps`, the length of the run including the warm-up, and
            `warmup_steps`, `warmup_learning_rate` and `warmup_form` of
            `piecewise_schedule`.

    Returns:
        A function of the step.

    Raises:
        InputError: the warm-up is not shorter than the run, or has an unknown form.
    """

    def decay(rate, steps):
        return optax.linear_schedule(rate, 0.0, steps)

    return _to_zero(decay, learning_rate, **lengths)


def _to_zero(
    make_decay,
    learning_rate,
    *,
    total_steps,
    warmup_steps=0,
    warmup_learning_rate=0.01,
    warmup_form="constant",
):
    if warmup_steps >= total_steps:
        raise InputError(
            f"The warm-up of {warmup_steps} steps must end before the run of "
            f"{total_steps} steps does."
        )
    decay = _of_float(make_decay(learning_rate, total_steps - warmup_steps))
    if not warmup_steps:
        return decay
    warmup = _warmup(warmup_learning_rate, learning_rate, warmup_steps, warmup_form)
    return optax.join_schedules([warmup, decay], [warmup_steps])


# Decay of the running error that ends a warm-up. It averages about 20 batches, so that
# a single lucky batch does not end it.
_ERROR_DECAY = 0.95


@dataclasses.dataclass(frozen=True)
class RateController:
    """Scale the learning rate by training progress: a warm-up, and drops at plateaus.

    Its state is a dict of arrays, saved with the training state. The defaults leave the
    rate unchanged.

    Attributes:
        warmup_factor: factor of the rate until the training error is below
            `warmup_until_error` for the first time.
        warmup_until_error: error in percent, as a running mean over about 20 batches
            that starts at 100; None disables the warm-up. He et al. 2015, section 4.2,
            train ResNet-110 at 0.01 instead of 0.1 until the error is below 80.
        plateau_factor: factor of the rate at each plateau of the validation error (0.1
            in He et al. 2015, section 3.4).
        plateau_patience: number of evaluations without a lower error that make a
            plateau; None disables the drops.
        plateau_drops: largest number of drops (three in Krizhevsky et al. 2012 and
            Simonyan and Zisserman 2015).
    """

    warmup_factor: float = 1.0
    warmup_until_error: float | None = None
    plateau_factor: float = 0.1
    plateau_patience: int | None = None
    plateau_drops: int = 3

    def init(self) -> dict[str, Any]:
        """Return the state before the first step."""
        state = {}
        if self.warmup_until_error is not None:
            state["warmup_error"] = jnp.float32(100)
        if self.plateau_patience is not None:
            state["plateau"] = self._plateau.init(jnp.float32(0))
        return state

    def factor(self, state: dict[str, Any]) -> jax.Array:
        """Return the factor of the next step's rate, f32[]."""
        factor = jnp.float32(1)
        if self.warmup_until_error is not None:
            warming = state["warmup_error"] >= self.warmup_until_error
            factor *= jnp.where(warming, self.warmup_factor, 1)
        if self.plateau_patience is not None:
            factor *= state["plateau"].scale
        return factor

    def after_step(
        self, state: dict[str, Any], error_percent: jax.Array
    ) -> dict[str, Any]:
        """Return the state after a step whose batch has this error, f32[]."""
        if self.warmup_until_error is None:
            return state
        before = state["warmup_error"]
        mean = _ERROR_DECAY * before + (1 - _ERROR_DECAY) * error_percent
        # Once below the limit the error is frozen: the warm-up does not start again.
        mean = jnp.where(before < self.warmup_until_error, before, mean)
        return {**state, "warmup_error": mean}

    def after_evaluation(
        self, state: dict[str, Any], error_percent: float
    ) -> dict[str, Any]:
        """Return the state after an evaluation with this validation error."""
        if self.plateau_patience is None:
            return state
        value = jnp.float32(error_percent)
        with jax.numpy_dtype_promotion("standard"):  # Optax divides by an integer
            _, plateau = self._plateau.update({}, state["plateau"], value=value)
        return {**state, "plateau": plateau}

    @property
    def _plateau(self):
        return contrib.reduce_on_plateau(
            self.plateau_factor,
            self.plateau_patience,
            rtol=0.0,
            atol=1e-6,
            min_scale=self.plateau_factor**self.plateau_drops,
        )


Feedback = RateController  # the name until 0.1
NO_FEEDBACK = RateController()


@dataclasses.dataclass(frozen=True)
class LossScaling:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018, section 3.2).

    The loss is multiplied by a factor before differentiation, so that small gradients
    do not vanish in half precision. A step whose gradient is not finite is skipped and
    the factor is halved; after `growth_interval` finite steps in a row it is doubled.

    Attributes:
        initial: initial factor of the loss, which is a sum over the batch.
        growth_interval: number of finite steps before the factor is doubled.
    """

    initial: float = 2.0**10
    growth_interval: int = 2000

    def init(self) -> dict[str, jax.Array]:
        """Return the state before the first step."""
        return {"factor": jnp.float32(self.initial), "good_steps": jnp.int32(0)}

    def after_step(
        self, state: dict[str, jax.Array], finite: jax.Array
    ) -> dict[str, jax.Array]:
        """Return the state after a step; `finite`, bool[], is that of its gradient.

        The factor stays at least 1.
        """
        good_steps = jnp.where(finite, state["good_steps"] + 1, 0)
        grows = good_steps == self.growth_interval
        factor = jnp.where(finite, state["factor"], state["factor"] / 2)
        return {
            "factor": jnp.maximum(jnp.where(grows, 2 * factor, factor), 1),
            "good_steps": jnp.where(grows, 0, good_steps),
        }


MOMENTUM_FORMS = ("torch", "caffe")


class RateScaledInside(optax.GradientTransformationExtraArgs):
    """An optimiser whose `update` takes a `rate_factor`.

    It is needed where the rate is part of the state, as in Caffe's momentum: scaling
    the update is then not the same as scaling the rate. `optax.chain` passes the factor
    on but returns another type, so wrap its result:

        tx = RateScaledInside(*optax.chain(optax.clip_by_global_norm(1.0), sgd(...)))
    """


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay: str,
    bias_rate: float = 1.0,
    momentum_form: str = "torch",
    trust_coefficient: float | None = None,
) -> optax.GradientTransformation:
    """Return SGD with momentum and weight decay, as in Torch's code or Caffe's.

    With g = gradient + weight_decay * w, the two forms are

        torch:  v = momentum * v + g           w = w - rate * v
        caffe:  v = momentum * v + rate * g    w = w - v

    and with Nesterov's rule w is w - rate * (g + momentum * v) in Torch's form and
    w - (rate * g + momentum * v) in Caffe's. Both are the same while the rate is
    constant. When it changes, Torch's form rescales the velocity at once; Caffe's keeps
    it, and it decays over about 1 / (1 - momentum) steps. Krizhevsky et al. 2012,
    section 5, have Caffe's form; Optax has Torch's.

    A block closed by stochastic depth has a gradient of zero, but still decays and
    moves by its momentum, as in the code of Huang et al. 2016.

    Args:
        schedule: learning rate by step.
        momentum: decay of the velocity.
        nesterov: whether to use Nesterov's rule.
        weight_decay: factor of the L2 penalty's gradient.
        decay: "all" parameters (the Torch codes), or "kernels" of convolutions and
            fully connected layers (He et al. 2015), selected by name because a scan
            gives BatchNorm's scales the rank of a matrix.
        bias_rate: factor of the rate for leaves named "bias" (2 in the Caffe codes).
        momentum_form: "torch" or "caffe".
        trust_coefficient: eta of `layer_rate`, by which LARS multiplies g of each
            kernel (You et al. 2017, algorithm 1, with Caffe's form of the momentum);
            None for SGD. Biases and BatchNorm's parameters keep the rate of SGD, on
            which the paper is silent (secondary source: the usual implementations).

    Returns:
        The optimiser; a `RateScaledInside` in Caffe's form.

    Raises:
        InputError: `decay` or `momentum_form` is unknown.
    """
    if momentum_form not in MOMENTUM_FORMS:
        raise must_be("momentum_form", '"torch" or "caffe"', momentum_form)
    decayed = optax.add_decayed_weights(weight_decay, _decay_mask(decay))
    if trust_coefficient is not None:
        decayed = _by_layer(decayed, weight_decay, trust_coefficient)
    biases = _scale_biases(bias_rate)
    if momentum_form == "torch":
        sgd = optax.sgd(schedule, momentum=momentum, nesterov=nesterov)
        return optax.chain(decayed, sgd, *biases)
    rule = optax.chain(
        decayed,
        _scale_by_rate(schedule),
        optax.trace(momentum, nesterov=nesterov),
        *biases,
    )
    return RateScaledInside(rule.init, rule.update)


def _scale_by_rate(schedule):
    """Return `optax.scale_by_learning_rate` that also takes a `rate_factor`."""
    by_schedule = optax.scale_by_learning_rate(schedule)

    def update(updates, state, params=None, *, rate_factor=1.0, **_):
        updates, state = by_schedule.update(updates, state, params)
        scaled = jax.tree.map(lambda u: (rate_factor * u).astype(u.dtype), updates)
        return scaled, state

    return optax.GradientTransformationExtraArgs(by_schedule.init, update)


def layer_rate(
    weights: jax.Array,
    grads: jax.Array,
    *,
    weight_decay: float,
    trust_coefficient: float,
    axis: tuple[int, ...] | None = None,
) -> jax.Array:
    """Return eta |w| / (|g| + weight_decay |w|), LARS's factor of a layer's rate.

    This is You et al. 2017, equation 6. `optax.lars` has |g + weight_decay w| below the
    line instead. The factor is 1 if either norm is 0, as in the usual implementations,
    so that a block closed by stochastic depth only decays as it does by `sgd`.

    Args:
        weights, grads: parameters of the layer, and the gradient before weight decay.
        weight_decay: factor of the L2 penalty's gradient.
        trust_coefficient: eta; 0.001 in the paper.
        axis: axes of one layer, if the arrays stack several; None: all.

    Returns:
        The factor, with axes of length 1.
    """
    w, g = (jnp.sqrt(jnp.sum(a * a, axis, keepdims=True)) for a in (weights, grads))
    rate = trust_coefficient * w / (g + weight_decay * w)
    return jnp.where((w > 0) & (g > 0), rate, 1)


def _by_layer(decayed, weight_decay, trust_coefficient):
    """Multiply what `decayed` makes of each layer's gradient by its `layer_rate`."""

    def update(grads, state, params=None):
        updates, state = decayed.update(grads, state, params)

        def scale(path, update, weights, grads):
            if path[-1].key != "kernel":
                return update
            stacked = any(part.key == "blocks" for part in path)  # along axis 0
            rate = layer_rate(
                weights,
                grads,
                weight_decay=weight_decay,
                trust_coefficient=trust_coefficient,
                axis=tuple(range(int(stacked), weights.ndim)),
            )
            return rate * update

        scaled = jax.tree_util.tree_map_with_path(scale, updates, params, grads)
        return scaled, state

    return optax.GradientTransformation(decayed.init, update)


def adamw(
    schedule: optax.Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float,
    decay: str,
    bias_rate: float = 1.0,
) -> optax.GradientTransformation:
    """Return Adam with decoupled weight decay.

    This is algorithm 2 of Loshchilov and Hutter 2019, by Optax.

    The decay of a step is schedule(step) * weight_decay * w, as in Optax and PyTorch.
    In the paper the schedule alone multiplies it, without the initial rate alpha.

    Args:
        schedule: learning rate by step.
        beta1, beta2: decays of the averages of gradients and their squares.
        epsilon: added to the root of the average square.
        weight_decay: see above.
        decay, bias_rate: as in `sgd`.

    Raises:
        InputError: `decay` is unknown.
    """
    rule = optax.adamw(
        schedule,
        b1=beta1,
        b2=beta2,
        eps=epsilon,
        weight_decay=weight_decay,
        mask=_decay_mask(decay),
    )
    rule = optax.chain(rule, *_scale_biases(bias_rate))

    def update(grads, state, params=None):
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to integers
            return rule.update(grads, state, params)

    return optax.GradientTransformation(rule.init, update)


def clipped(
    tx: optax.GradientTransformation, norm: float
) -> optax.GradientTransformation:
    """Return an optimiser whose gradient has at most this L2 norm.

    The gradient of all parameters, without weight decay, is rescaled as a whole
    (Pascanu et al. 2013, algorithm 1).
    """
    chain = optax.chain(optax.clip_by_global_norm(norm), tx)
    return RateScaledInside(*chain) if isinstance(tx, RateScaledInside) else chain


def _scale_biases(rate):
    return [] if rate == 1 else [optax.masked(optax.scale(rate), bias_mask)]


def _decay_mask(decay):
    if decay not in ("all", "kernels"):
        raise must_be("weight decay", 'on "all" or "kernels"', decay)
    return kernel_mask if decay == "kernels" else None


def kernel_mask(params):
    """Return a tree like `params`, True for leaves named "kernel" and False elsewhere.

    `sgd` decays these alone with `decay="kernels"` (He et al. 2015).
    """
    return _mask("kernel", params)


def bias_mask(params):
    """Return a tree like `params`, True for leaves named "bias" and False elsewhere."""
    return _mask("bias", params)


def _mask(name, params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == name, params
    )
