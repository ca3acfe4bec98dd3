# SPDX-License-Identifier: Apache-2.0
"""Numbers that follow from definitions: sizes, distributions, and identities.

Each function returns plain values for JSON. Identities are measured on small networks
with random parameters, as the largest difference divided by the largest value.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

import rn_jax
from rn_jax import StochasticDepth, stochastic_depth
from rn_jax.analysis import cost, paths
from rn_jax.models import MODELS
from rn_jax.models.googlenet import INCEPTION
from rn_jax.models.resnext import FORMS, convert_form

# Number of blocks of ResNet-110.
_BLOCKS = 54
# Fields of a network that compiles quickly.
_SMALL: dict[str, Any] = {"stage_sizes": (2, 2), "features": (8, 16)}


def sizes() -> dict[str, dict[str, int]]:
    """Return parameters and multiply-adds of networks that claims compare."""
    names = (
        *("plain110", "resnet110", "plain34", "resnet50", "resnet152"),
        *("vgg16", "vgg19", "alexnet_2012", "resnext50_32x4d"),
        *("densenet_bc100_12", "preact_resnet1001"),
    )
    found = {name: _size(rn_jax.create_model(name), MODELS[name]) for name in names}
    name = "googlenet_2014"
    at_test = rn_jax.create_model(name, aux_heads=False)
    return {**found, name: _size(at_test, MODELS[name])}


def _size(model, entry):
    shape = entry.image_size, entry.image_size, entry.channels
    work = cost.multiply_adds(model, entry.image_size, entry.channels)
    params = jax.tree.leaves(_shapes(model, shape)["params"])
    return {"params": sum(leaf.size for leaf in params), "multiply_adds": work}


def _shapes(model, image_shape):
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(
        lambda image: model.init(jax.random.key(0), image, train=False), image
    )


def shortcuts() -> dict[str, dict[str, int]]:
    """Return the sizes of ResNet-34 and -50 by kind of shortcut."""
    return {
        f"{name} {kind}": _size(rn_jax.create_model(name, shortcut=kind), MODELS[name])
        for name, kinds in (("resnet34", "ABC"), ("resnet50", "BC"))
        for kind in kinds
    }


def bottlenecks() -> dict[str, dict[str, int]]:
    """Return the size of a bottleneck of 256 channels by its shortcut.

    It is each of those that keep the shape in the first stage of ResNet-50: "identity"
    with option B, "projection" with C.
    """
    side = MODELS["resnet50"].image_size
    found = {}
    for name, kind in (("identity", "B"), ("projection", "C")):
        model = rn_jax.create_model("resnet50", shortcut=kind)
        blocks = _shapes(model, (side, side, 3))["params"]["stage1"]["blocks"]
        leaves = jax.tree.leaves(blocks)  # of several blocks, along axis 0
        work = cost.multiply_adds_by_module(model, (side, side, 3))
        inside = [n for path, n in work.items() if path[:2] == ("stage1", "blocks")]
        number = leaves[0].shape[0]
        found[name] = {
            "params": sum(leaf.size for leaf in leaves) // number,
            "multiply_adds": sum(inside) // number,
        }
    return found


def path_lengths() -> dict[str, float]:
    """Return shares of all 2^54 paths by length, and the share deletions leave."""
    lengths = paths.length_distribution(np.full(_BLOCKS, 0.5))
    bounds = ((19, 35), (5, 17))
    return {
        "mean": float(lengths @ np.arange(_BLOCKS + 1)),
        "after 10 deletions": paths.surviving_share(10),
        **{f"{low} to {high}": paths.share(lengths, low, high) for low, high in bounds},
    }


def survival() -> dict[str, Any]:
    """Return the survival probabilities of ResNet-110 and their sum."""
    settings = StochasticDepth(last_survival=0.5)
    probabilities = stochastic_depth.survival_probs(settings, _BLOCKS)
    return {
        "blocks": _BLOCKS,
        "first": float(probabilities[0]),
        "last": float(probabilities[-1]),
        "expected_open": float(
            stochastic_depth.expected_open_blocks(settings, _BLOCKS)
        ),
    }


def closed_blocks() -> dict[str, float]:
    """Return what a closed block does to outputs, gradients and statistics.

    The parameters of the closed blocks are not a number, which any use of them spreads.
    """
    model = rn_jax.create_model("resnet20", **_SMALL)
    images, labels = _batch(4)
    variables = model.init(jax.random.key(0), images, train=False)
    closed = rn_jax.unstack(variables)
    first = closed["params"]["stage1"]["block01"]
    closed["params"]["stage1"]["block01"] = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, jnp.nan), first
    )
    damaged = rn_jax.stack(closed, model)
    gates = jnp.ones(model.num_blocks).at[0].set(0)

    def loss(params, statistics):
        logits, state = model.apply(
            {"params": params, "batch_stats": statistics},
            images,
            train=True,
            gates=gates,
            mutable=["batch_stats"],
        )
        return -jax.nn.log_softmax(logits)[jnp.arange(4), labels].mean(), state

    gradient, state = jax.grad(loss, has_aux=True)(
        damaged["params"], variables["batch_stats"]
    )
    gradient = rn_jax.unstack({"params": gradient})["params"]["stage1"]["block01"]
    state = {"batch_stats": state["batch_stats"]}
    before, after = (
        rn_jax.unstack(tree)["batch_stats"]["stage1"]["block01"]
        for tree in (variables, state)
    )
    logits = jnp.asarray(model.apply(damaged, images, train=False, gates=gates))
    return {
        "finite_logits": float(jnp.isfinite(logits).mean()),
        "largest_gradient": _largest(gradient),
        "largest_change_of_statistics": _largest(
            jax.tree.map(lambda a, b: a - b, before, after)
        ),
    }


def _batch(size):
    keys = jax.random.split(jax.random.key(1))
    images = jax.random.normal(keys[0], (size, 16, 16, 3))
    return images, jax.random.randint(keys[1], (size,), 0, 10)


def _largest(tree):
    return float(max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(tree)))


def _relative(one, other):
    return float(jnp.abs(one - other).max() / jnp.abs(one).max())


def deeper() -> dict[str, float]:
    """Return how the logits of deepened networks differ from those of the network."""
    images, _ = _batch(4)
    found = {}
    for name in ("resnet20", "preact_resnet110", "plain20"):
        model = rn_jax.create_model(name, **_SMALL)
        variables = model.init(jax.random.key(0), images, train=False)
        grown, new = rn_jax.deepen(model, variables, (4, 4), key=jax.random.key(2))
        before, after = (
            m.apply(v, images, train=False)
            for m, v in ((model, variables), (grown, new))
        )
        found[name] = _relative(before, after)
    return found


def resnext_forms() -> dict[str, float]:
    """Return how the logits of a ResNeXt in forms (a) and (b) differ from form (c)."""
    images, _ = _batch(4)
    fields = {"stage_sizes": (1, 1), "cardinality": 4, "base_width": 16}
    models = {
        form: rn_jax.create_model("resnext29_8x64d", form=form, **fields)
        for form in sorted(FORMS)
    }
    variables = models["c"].init(jax.random.key(0), images, train=False)
    logits = models["c"].apply(variables, images, train=False)
    found = {}
    for form in "ab":
        converted = convert_form(variables, models[form], "c", form)
        other = models[form].apply(converted, images, train=False)
        found[f"form {form}"] = _relative(logits, other)
    return found


def dense_inputs() -> dict[str, Any]:
    """Return the input channels of each layer of a DenseNet of growth rate 12."""
    model = rn_jax.create_model("densenet40_12")
    params = _shapes(model, (32, 32, 3))["params"]
    channels = {
        "/".join(path): leaf.shape[2]
        for path, leaf in flax.traverse_util.flatten_dict(params).items()
        if leaf.ndim == 4 and leaf.shape[-1] == 12
    }
    first = [channels[name] for name in sorted(channels) if name.startswith("stage1/")]
    return {"growth_rate": 12, "initial": 16, "first_stage": first}


def depths() -> dict[str, int]:
    """Return the number of weighted layers in sequence.

    Each module of GoogLeNet counts two: its longest branch.
    """
    found = {}
    for name in ("alexnet_2012", "vgg19", "googlenet_2014"):
        entry = MODELS[name]
        shape = entry.image_size, entry.image_size, entry.channels
        work = cost.multiply_adds_by_module(rn_jax.create_model(name), shape)
        found[name] = list(work)
    names = {path[0] for path in found["googlenet_2014"]}
    alexnet = [path[0] for path in found["alexnet_2012"]]
    return {
        "alexnet_2012 convolutions": sum("conv" in name for name in alexnet),
        "vgg19": len(found["vgg19"]),
        "googlenet_2014": sum(1 + name.startswith("inception") for name in names),
    }


def block_settings() -> dict[str, int]:
    """Return how many numbers define a block of each network."""
    return {
        "resnext50_32x4d": len(rn_jax.create_model("resnext50_32x4d").block_kwargs),
        "googlenet": max(map(len, INCEPTION.values())),
    }


FUNCTIONS: Mapping[str, Callable[[], Any]] = {
    function.__name__: function
    for function in (
        *(sizes, shortcuts, bottlenecks, path_lengths, survival, closed_blocks),
        *(deeper, resnext_forms, block_settings, dense_inputs, depths),
    )
}
