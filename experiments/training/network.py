# SPDX-License-Identifier: Apache-2.0
"""The network of a config, without parameters."""

import contextlib

import jax
import jax.numpy as jnp

import rn_jax
from configs.default import Config
from rn_jax import train
from rn_jax.data import get_spec
from rn_jax.errors import InputError, first_line, shown, unknown_name
from rn_jax.models.network import Network

_MOST_BLOCKS = 10_000
_MOST_PARAMS = 2**31


def make_network(
    config: Config, axis_name: str | None = None
) -> tuple[Network, tuple[int, int, int]]:
    """Make a network, and return it with the shape (H, W, C) of its training images.

    BatchNorm is synchronised over the devices of `axis_name`; None: each by itself.

    Raises:
        InputError: model_kwargs that do not fit the network or those images.
    """
    model = make_model(config, axis_name)
    spec = get_spec(config.dataset)
    image_shape = spec.image_shape
    if spec.crops_on_host:
        image_shape = (config.image_size, config.image_size, 3)
    if config.model_kwargs:
        _check_by_tracing(config, model, image_shape)
    return model, image_shape


def make_model(config: Config, axis_name: str | None = None) -> Network:
    """Make a network, which may still turn out to be unfit for its images.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    stochastic_depth = _stochastic_depth(config.stochastic_depth)
    if config.stochastic_depth_from_epoch and (
        stochastic_depth is None or stochastic_depth.granularity == "subset"
    ):
        raise InputError(
            "stochastic_depth_from_epoch needs stochastic_depth of a granularity other "
            'than "subset".'
        )
    derived = {
        "num_classes": get_spec(config.dataset).num_classes,
        "stochastic_depth": stochastic_depth,
        "frozen": config.frozen,
        "axis_name": axis_name,
        "dtype": jnp.dtype(config.dtype),
    }
    for name in config.model_kwargs:
        if name in derived:
            raise InputError(f"model_kwargs cannot set {name}: other fields do.")
    if not config.frozen:  # a network of one's own may lack the field
        del derived["frozen"]
    with _unfit_in_a_sentence(config):
        model = rn_jax.create_model(str(config.model), **derived, **config.model_kwargs)
        num_blocks = model.num_blocks
    if num_blocks > _MOST_BLOCKS:
        raise InputError(
            f"{config.model} with these model_kwargs has {num_blocks:,} blocks; the "
            f"limit is {_MOST_BLOCKS:,}."
        )
    return model


def _stochastic_depth(settings):
    if settings is None:
        return None
    fields = {"preset", *rn_jax.StochasticDepth.__dataclass_fields__}
    for name in settings:
        if name not in fields:
            raise unknown_name("field of stochastic_depth", name, fields)
    if "preset" in settings:
        return rn_jax.StochasticDepth.preset(**settings)
    return rn_jax.StochasticDepth(**settings)


def _check_by_tracing(config, model, image_shape):
    """Trace a network with model_kwargs, which may be unfit in many ways.

    Raises:
        InputError: it cannot be applied to such images, or has too many parameters.
    """
    model = model.clone(axis_name=None)

    def apply(images):
        key = jax.random.key(0)
        variables = model.init({"params": key}, images, train=False)
        logits, _ = model.apply(
            variables,
            images,
            train=True,
            rngs={**train.step_rngs(key), "gates": key},
            mutable=train.COLLECTIONS,
        )
        return variables["params"], logits

    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    with _unfit_in_a_sentence(config):
        params, logits = jax.eval_shape(apply, images)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if size > _MOST_PARAMS:
        raise InputError(
            f"{config.model} with these model_kwargs has {size:,} parameters; the "
            "limit is 2^31."
        )
    if logits.ndim != 2 or 0 in logits.shape:
        raise InputError(
            f"{config.model} with these model_kwargs returns no logits for images of "
            f"{list(image_shape)}."
        )


@contextlib.contextmanager
def _unfit_in_a_sentence(config):
    """Turn what a network with unfit model_kwargs raises into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of Flax, JAX or NumPy, by what does not fit
        if not config.model_kwargs:
            raise
        raise InputError(
            f"{config.model} cannot be made with the model_kwargs "
            f"{shown(config.model_kwargs)} ({type(error).__name__}: "
            f"{first_line(error)})."
        ) from error
