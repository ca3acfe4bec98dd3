# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth: Deep Networks with Stochastic Depth (Huang et al. 2016).

While training, block l of L computes

    H_l = ReLU(b_l f_l(H_{l-1}) + shortcut(H_{l-1})),   b_l ~ Bernoulli(p_l),

with one draw per block and mini-batch (section 3). At test every block is open, and its
branch is multiplied by its survival probability (equation 5):

    H_l = ReLU(p_l f_l(H_{l-1}) + shortcut(H_{l-1})).

At least seven other algorithms have the same name. `StochasticDepth` names each choice
in which they differ. One of its settings is ShakeDrop (Yamada et al. 2018), which
perturbs the branch of a closed block instead of dropping it. All functions here are
pure; gates are ordinary arrays that a network takes as data.
"""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rn_jax.errors import InputError, must_be, unknown_name, whole_number

GRANULARITIES = ("batch", "example", "subset")
SCHEDULES = ("linear", "linear_from_zero", "uniform")
SCALINGS = ("test", "training", "none")
STATISTICS = ("frozen", "updated")
SHAKES = ("batch", "example")

_TIMM = {
    "granularity": "example",
    "schedule": "linear_from_zero",
    "scaling": "training",
    "closed_statistics": "updated",
}
# The variants of other projects; docs/gates.md lists the differences.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "huang2016": {
        "granularity": "batch",
        "schedule": "linear",
        "scaling": "test",
        "closed_statistics": "frozen",
    },
    "timm": _TIMM,
    # ConvNeXt's and Swin's use of ops.stochastic_depth, mode="row"
    "torchvision": _TIMM,
}


@dataclass(frozen=True)
class StochasticDepth:
    """Settings of stochastic depth, by default those of Huang et al. 2016.

    Attributes:
        last_survival: p_L, the probability that the last block is open, in (0, 1].
            (It is _not_ a drop rate.)
        schedule: p_l of the blocks l = 1..L:
            "linear", 1 - l/L (1 - p_L): the first block can be closed too;
            "linear_from_zero", 1 - (l-1)/(L-1) (1 - p_L): the first block never closes;
            "uniform", p_L; or all L probabilities in a tuple, list or array, stored as
            a tuple of floats.
        granularity: unit for which a gate is drawn:
            "batch", the mini-batch. A closed block is not computed;
            "example", each example. The branch is computed for all examples;
            "subset", round(p B) of B examples, at least one, for each block. The branch
            is computed for these alone. All blocks have the same number, so `schedule`
            must be "uniform". Each device draws its own examples, so the draw depends
            on the number of devices.
        scaling: where the probability enters: "test" multiplies every branch by p_l at
            test; "training" multiplies open branches by 1 / p_l in training; "none",
            nowhere.
        closed_statistics: BatchNorm's moving averages of a block closed for the
            mini-batch: "frozen", or "updated", which computes the branch anyway and
            saves no time. None selects what the granularity allows: "frozen" for
            "batch". Gates of examples always update them: "example" by all examples,
            "subset" by those that pass through the branch.
        num_open: number of blocks open in every mini-batch (or for every example),
            chosen uniformly: p_l = num_open / L, and `last_survival` is ignored.
            `schedule` must be "uniform".
        shake: ShakeDrop (Yamada et al. 2018): the branch of a closed block (b_l = 0) is
            multiplied by a uniform alpha in the forward pass, and its gradient by a
            uniform beta: the factors are b_l + alpha - b_l alpha and b_l + beta -
            b_l beta. Both are drawn for every block and "batch" or "example" (the
            paper's image level; its channel and pixel levels are not here). None: a
            closed branch is dropped. A closed branch is computed and updates
            statistics. At test, scaling "test" multiplies by the mean of b_l + alpha -
            b_l alpha; scaling "training" is not possible, nor granularity "subset".
        shake_forward: (least, greatest) alpha.
        shake_backward: (least, greatest) beta.

    Raises:
        InputError: a value is not one of these, or the combination has no meaning.
    """

    last_survival: float = 0.5
    schedule: str | tuple[float, ...] = "linear"
    granularity: str = "batch"
    scaling: str = "test"
    closed_statistics: str | None = None
    num_open: int | None = None
    shake: str | None = None
    shake_forward: tuple[float, float] = (-1.0, 1.0)
    shake_backward: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        survival = _probability(self.last_survival)
        if survival is None:
            name = "last_survival, the survival probability p_L of the last block,"
            raise must_be(name, "in (0, 1]", self.last_survival)
        object.__setattr__(self, "last_survival", survival)
        for name, choices in [
            ("granularity", GRANULARITIES),
            ("scaling", SCALINGS),
            ("closed_statistics", (None, *STATISTICS)),
            ("shake", (None, *SHAKES)),
        ]:
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in choices:
                raise must_be(name, f"one of {', '.join(map(str, choices))}", value)
        if not isinstance(self.schedule, str) or self.schedule not in SCHEDULES:
            object.__setattr__(self, "schedule", _probabilities(self.schedule))
        if self.num_open is not None:
            number = whole_number("num_open", self.num_open)
            object.__setattr__(self, "num_open", number)
        for name in ("shake_forward", "shake_backward"):
            object.__setattr__(self, name, _range(name, getattr(self, name)))
        self._check_combination()

    def _check_combination(self):
        if self.granularity == "example" and self.closed_statistics == "frozen":
            raise InputError(
                'granularity "example" computes the branch of every example, so '
                'closed_statistics cannot be "frozen".'
            )
        if self.granularity == "subset":
            if self.closed_statistics is not None:
                raise InputError(
                    'granularity "subset" never closes a block for a mini-batch, so '
                    "closed_statistics must be None."
                )
            if self.num_open is not None:
                raise InputError(
                    'num_open counts open blocks, but granularity "subset" opens every '
                    "block for some examples; set only one of them."
                )
            if self.schedule != "uniform":
                raise InputError(
                    'granularity "subset" opens every block for the same number of '
                    'examples, so schedule must be "uniform".'
                )
        if self.shake and self.closed_statistics == "frozen":
            raise InputError(
                "shake computes the branch of a closed block, so closed_statistics "
                'cannot be "frozen".'
            )
        if self.shake and (self.granularity == "subset" or self.scaling == "training"):
            raise InputError(
                'shake cannot be combined with the granularity "subset" or the scaling '
                '"training", in which a closed branch has no factor.'
            )
        if self.num_open is not None and self.schedule != "uniform":
            raise InputError(
                'num_open chooses blocks uniformly, so schedule must be "uniform".'
            )

    @classmethod
    def preset(cls, preset: str, **settings: Any) -> "StochasticDepth":
        """Return the settings of a project: "huang2016", "timm" or "torchvision".

        Args:
            preset: key of `PRESETS`.
            **settings: other fields, such as `last_survival`.

        Raises:
            InputError: the name is unknown.
        """
        if not isinstance(preset, str) or preset not in PRESETS:
            raise unknown_name("preset of stochastic depth", preset, PRESETS)
        return cls(**{**PRESETS[preset], **settings})


def _probability(value: Any) -> float | None:
    """Return a number in (0, 1] of any type as a float, or None for other values."""
    dtype = str(getattr(value, "dtype", type(value).__name__))
    if getattr(value, "ndim", 0) or dtype.startswith(("bool", "complex")):
        return None
    if isinstance(value, str | bytes):  # float would parse it
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # also raised by traced values
        return None
    return number if 0 < number <= 1 else None


def _probabilities(schedule: Any) -> tuple[float, ...]:
    try:
        given = [_probability(p) for p in schedule]
    except TypeError:  # not iterable
        given = [None]
    if isinstance(schedule, str | Set | Mapping):  # an unknown name, or unordered
        given = [None]
    probs = tuple(p for p in given if p is not None)
    if len(probs) < len(given):
        wanted = f"one of {', '.join(SCHEDULES)} or a tuple of survival probabilities"
        raise must_be("schedule", f"{wanted}, which must be in (0, 1]", schedule)
    return probs


def _range(name: str, value: Any) -> tuple[float, float]:
    """Return (least, greatest) as floats, or raise an InputError."""
    try:
        least, greatest = map(float, value)
        unordered = isinstance(value, str | bytes | Set | Mapping)
        if not unordered and -math.inf < least <= greatest < math.inf:
            return least, greatest
    except (TypeError, ValueError, OverflowError):
        pass
    raise must_be(name, "two numbers, the least and the greatest", value)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shaken:
    """Gates of ShakeDrop: factors of each branch and of its gradient.

    Attributes:
        forward: f32[L], f32[L, 1] or f32[L, B], factors of the branches.
        backward: f32[L], f32[L, 1] or f32[L, B], factors of their gradients.
    """

    forward: jax.Array
    backward: jax.Array

    def __getitem__(self, index) -> "Shaken":
        return Shaken(self.forward[index], self.backward[index])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Subset:
    """Gates of granularity "subset": the examples that pass through each branch.

    Attributes:
        indices: i32[L, m], positions in the batch, without repetition.
        weights: f32[L, m], factors of the branches.
    """

    indices: jax.Array
    weights: jax.Array

    def __getitem__(self, index) -> "Subset":
        return Subset(self.indices[index], self.weights[index])


def survival_probs(settings: StochasticDepth, num_blocks: int) -> jax.Array:
    """Return the survival probabilities p_l, f32[L] (equation 4 for "linear").

    Raises:
        InputError: the tuple of probabilities or `num_open` does not fit `num_blocks`.
    """
    if settings.num_open is not None:
        if settings.num_open > num_blocks:
            raise InputError(
                f"num_open is {settings.num_open}, but there are {num_blocks} blocks."
            )
        return jnp.full(num_blocks, settings.num_open / num_blocks, jnp.float32)
    if not isinstance(settings.schedule, str):
        if len(settings.schedule) != num_blocks:
            raise InputError(
                f"schedule has {len(settings.schedule)} survival probabilities, but "
                f"there are {num_blocks} blocks."
            )
        return jnp.array(settings.schedule, jnp.float32)
    place = jnp.arange(num_blocks, dtype=jnp.float32)  # (num_blocks,)
    depth = {
        "linear": (place + 1) / max(num_blocks, 1),
        "linear_from_zero": place / max(num_blocks - 1, 1),
        "uniform": jnp.ones(num_blocks, jnp.float32),
    }[settings.schedule]
    return 1 - depth * jnp.float32(1 - settings.last_survival)


def sample_gates(
    key: jax.Array,
    settings: StochasticDepth,
    num_blocks: int,
    batch_size: int | None = None,
    first_index: int | jax.Array = 0,
) -> jax.Array | Subset | Shaken:
    """Draw the gates of one mini-batch for training (section 3).

    Gates of the mini-batch depend on the key alone, so devices with the same key skip
    the same blocks. Gates of an example also depend on its position in the global
    batch, and subsets on the position of the device.

    Args:
        key: PRNG key of this step, such as `fold_in(key, step)`.
        settings: variant of stochastic depth.
        num_blocks: L.
        batch_size: B, examples on this device; required for gates of examples.
        first_index: position of this device's first example in the global batch.

    Returns:
        f32[L] for "batch"; f32[L, 1], which computes every branch, if
        `closed_statistics` is "updated"; f32[L, B] for "example"; `Subset` for
        "subset". A gate is 0 if closed, 1 if open, or 1 / p_l with scaling in training.
        `Shaken` with `shake`.

    Raises:
        InputError: `batch_size` is required but missing, or see `survival_probs`.
    """
    probs = survival_probs(settings, num_blocks)  # (num_blocks,)
    weights = 1 / probs if settings.scaling == "training" else jnp.ones_like(probs)

    def draw(key):
        if settings.num_open is None:
            is_open = jax.random.bernoulli(key, probs)
        else:
            order = jax.random.permutation(key, num_blocks)
            is_open = order < settings.num_open
        return jnp.where(is_open, weights, 0)

    def draw_for(unit, key, draw):
        """Return draw(key) for the batch, f32[L, 1], or each example, f32[L, B]."""
        if unit == "batch":
            return draw(key)[:, None]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            key, first_index + jnp.arange(batch_size, dtype=jnp.int32)
        )
        return jax.vmap(draw, out_axes=1)(keys)

    units = settings.granularity, settings.shake
    if batch_size is None and not {*units} <= {"batch", None}:
        name = "shake" if settings.granularity == "batch" else "granularity"
        raise InputError(
            f'{name} "{getattr(settings, name)}" needs the batch size to draw gates.'
        )
    if settings.shake:
        open_key, *keys = jax.random.split(key, 3)
        is_open = draw_for(settings.granularity, open_key, draw)

        def factors(key, limits):  # b + alpha - b alpha
            uniform = partial(jax.random.uniform, shape=(num_blocks,), dtype="float32")
            draw = partial(uniform, minval=limits[0], maxval=limits[1])
            shaken = draw_for(settings.shake, key, draw)
            return jnp.where(is_open != 0, 1.0, shaken)  # (num_blocks, 1 or B)

        ranges = settings.shake_forward, settings.shake_backward
        return Shaken(*map(factors, keys, ranges))
    if settings.granularity != "subset":
        gates = draw_for(settings.granularity, key, draw)
        closes = settings.granularity == "batch" and not computes_closed(settings)
        return gates[:, 0] if closes else gates
    assert batch_size is not None
    size = subset_size(settings, batch_size)
    block_keys = jax.random.split(jax.random.fold_in(key, first_index), num_blocks)
    places = jnp.arange(batch_size, dtype=jnp.int32)
    # (num_blocks, size)
    indices = jax.vmap(lambda k: jax.random.permutation(k, places)[:size])(block_keys)
    factor = batch_size / size if settings.scaling == "training" else 1.0
    return Subset(indices, jnp.full((num_blocks, size), factor, jnp.float32))


def subset_size(settings: StochasticDepth, batch_size: int) -> int:
    """Return m, the number of B examples per branch with granularity "subset"."""
    return max(1, round(settings.last_survival * batch_size))


def computes_closed(settings: StochasticDepth) -> bool:
    """Return whether the branches of closed blocks are computed."""
    by_example = settings.granularity == "example"
    updated = settings.closed_statistics == "updated"
    return by_example or updated or settings.shake is not None


def open_shares(gates: jax.Array | Subset | Shaken, batch_size: int) -> jax.Array:
    """Return the share of the mini-batch for which each block is open, f32[L]."""
    if isinstance(gates, Subset):
        num_blocks, size = gates.indices.shape
        return jnp.full(num_blocks, size / batch_size, jnp.float32)
    if isinstance(gates, Shaken):  # other factors are 1 with probability 0
        is_open = (gates.forward == 1) & (gates.backward == 1)
    else:
        is_open = gates != 0
    shares = is_open.astype(jnp.float32)
    return shares if shares.ndim == 1 else shares.mean(axis=1)


def eval_gates(settings: StochasticDepth, num_blocks: int) -> jax.Array:
    """Return the gates at test, f32[L]: p_l with scaling at test (equation 5), else 1.

    With `shake`, p_l is replaced by the mean of b_l + alpha - b_l alpha.

    Raises:
        InputError: see `survival_probs`.
    """
    probs = survival_probs(settings, num_blocks)
    if settings.shake:
        probs = probs + (1 - probs) * jnp.float32(sum(settings.shake_forward) / 2)
    return probs if settings.scaling == "test" else jnp.ones_like(probs)


test_gates = eval_gates  # the name until 0.1


def expected_open_blocks(settings: StochasticDepth, num_blocks: int) -> jax.Array:
    """Return the expected number of open blocks, f32[] (section 3).

    It is (3 L - 1) / 4 under the linear rule with p_L = 0.5.
    """
    return survival_probs(settings, num_blocks).sum()
