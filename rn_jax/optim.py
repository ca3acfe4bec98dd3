# SPDX-License-Identifier: Apache-2.0
"""Optimisers and learning-rate schedules of the residual-network papers, in Optax."""

from collections.abc import Sequence

import jax
import optax

from rn_jax.errors import InputError


def piecewise_schedule(
    learning_rate: float,
    *,
    drops: Sequence[int] = (),
    factor: float = 0.1,
    warmup_steps: int = 0,
    warmup_learning_rate: float = 0.01,
) -> optax.Schedule:
    """Piecewise-constant learning rate, with the papers' constant warm-up.

    Args:
        learning_rate: the rate from the end of the warm-up to the first drop.
        drops: steps from which on the rate is multiplied by `factor` once more.
        factor: 0.1 in every paper here.
        warmup_steps: steps at `warmup_learning_rate` before `learning_rate` sets in
            (He et al. 2015, section 4.2, trains ResNet-110 so for about 400).
        warmup_learning_rate: rate of the warm-up.

    Returns:
        A function of the step.

    Raises:
        InputError: the drops do not increase, or one falls into the warm-up.
    """
    boundaries = [warmup_steps, *drops] if warmup_steps else list(drops)
    if sorted(set(boundaries)) != boundaries:
        raise InputError(
            "The learning rate's drops must come one after another and after the "
            f"warm-up, but warm-up and drops end at steps {boundaries}."
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
    """Half a cosine from `learning_rate` to 0 (Loshchilov and Hutter 2017, equation 5).

    Args:
        learning_rate: the rate at the end of the warm-up.
        total_steps: of the run, the warm-up among them.
        warmup_steps: steps at `warmup_learning_rate` before.
        warmup_learning_rate: rate of the warm-up.

    Returns:
        A function of the step.

    Raises:
        InputError: the warm-up is as long as the run.
    """
    if warmup_steps >= total_steps:
        raise InputError(
            f"The warm-up of {warmup_steps} steps must end before the run of "
            f"{total_steps} steps does."
        )
    cosine = optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps)
    if not warmup_steps:
        return cosine
    warmup = optax.constant_schedule(warmup_learning_rate)
    return optax.join_schedules([warmup, cosine], [warmup_steps])


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay: str,
) -> optax.GradientTransformation:
    """SGD with momentum and weight decay, as in the papers' Torch and Caffe codes.

    With g = gradient + weight_decay * w, v = momentum * v + g and

        w = w - rate * v                     or, by Nesterov's rule,
        w = w - rate * (g + momentum * v).

    A block that stochastic depth closed has a gradient of zero, and still decays and
    still moves by its momentum, as in the authors' code.

    Args:
        schedule: learning rate by step.
        momentum: of the running sum of gradients.
        nesterov: which of the two rules.
        weight_decay: factor of the L2 penalty's gradient.
        decay: "all" parameters (the Torch codes), or "kernels" of convolutions and
            fully connected layers only (He et al. 2015). Chosen by name: a scan gives
            BatchNorm's scales the rank of a matrix.

    Raises:
        InputError: `decay` is neither.
    """
    if decay not in ("all", "kernels"):
        raise InputError(f'weight decay must be on "all" or "kernels", not {decay!r}.')
    mask = kernel_mask if decay == "kernels" else None
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def kernel_mask(params):
    """A tree like `params`: True for the leaves named "kernel", False for others."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )
