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
) -> optax.Schedule:
    """Return a piecewise-constant learning rate with a constant warm-up.

    Args:
        learning_rate: rate from the end of the warm-up to the first drop.
        drops: steps at which the rate is multiplied by `factor`.
        factor: 0.1 in all papers here.
        warmup_steps: number of steps at `warmup_learning_rate` (about 400 for
            ResNet-110 in He et al. 2015, section 4.2).
        warmup_learning_rate: rate of the warm-up.

    Returns:
        A function of the step.

    Raises:
        InputError: the drops do not increase, or one is within the warm-up.
    """
    boundaries = [warmup_steps, *drops] if warmup_steps else list(drops)
    if sorted(set(boundaries)) != boundaries:
        raise InputError(
            "The learning rate's drops must come one after another and after the "
            f"warm-up, but the steps of warm-up and drops are {boundaries}."
        )
    rates = [learning_rate * factor**i for i in range(len(drops) + 1)]
    if warmup_steps:
        rates.insert(0, warmup_learning_rate)
    return optax.join_schedules([optax.constant_schedule(r) for r in rates], boundaries)


def cosine_schedule(
    learning_rate: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_learning_rate: float = 0.01,
) -> optax.Schedule:
    """Return half a cosine that ends at 0 (Loshchilov and Hutter 2017, equation 5).

    Args:
        learning_rate: rate at the end of the warm-up.
        total_steps: length of the run, including the warm-up.
        warmup_steps, warmup_learning_rate: as in `piecewise_schedule`.

    Returns:
        A function of the step.

    Raises:
        InputError: the warm-up is not shorter than the run.
    """
    if warmup_steps >= total_steps:
        raise InputError(
            f"The warm-up of {warmup_steps} steps must end before the run of "
            f"{total_steps} steps does."
        )
    decay = optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps)

    def cosine(step):  # Optax would mix an integer with floats
        return decay(jnp.asarray(step, jnp.float32))

    if not warmup_steps:
        return cosine
    warmup = optax.constant_schedule(warmup_learning_rate)
    return optax.join_schedules([warmup, cosine], [warmup_steps])


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

    Returns:
        The optimiser; a `RateScaledInside` in Caffe's form.

    Raises:
        InputError: `decay` or `momentum_form` is unknown.
    """
    if decay not in ("all", "kernels"):
        raise must_be("weight decay", 'on "all" or "kernels"', decay)
    if momentum_form not in MOMENTUM_FORMS:
        raise must_be("momentum_form", '"torch" or "caffe"', momentum_form)
    mask = kernel_mask if decay == "kernels" else None
    decayed = optax.add_decayed_weights(weight_decay, mask)
    biases = [] if bias_rate == 1 else [optax.masked(optax.scale(bias_rate), bias_mask)]
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
