# SPDX-License-Identifier: Apache-2.0
"""Features: the maps inside a network, for tasks other than classification.

Every family names the same places: "stem", the stem's output before it is pooled, where
there is a stem; the stages, "stage1", "stage2", ...; and "final", the last map, which
the classifier pools or takes whole. AlexNet and GoogLeNet have the names of their
layers, such as "conv1" and "inception3a", in place of stages. In networks with blocks,
the name in `BlockInfo`, such as "stage2/block01", is that block's output.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from rn_jax.errors import unknown_name
from rn_jax.models.network import Network
from rn_jax.models.trunk import unstack

# Of the images that show strides: enough rows for windows without padding, which lose
# a few of them, to change no quotient by as much as a half.
_SHAPE = (2**15, 32)


@dataclass(frozen=True)
class FeatureInfo:
    """The size of a feature.

    Attributes:
        stride: pixels of the image, along a side, for each of the feature's; None for a
            feature without pixels, f[B, C].
        channels: C.
    """

    stride: int | None
    channels: int


def feature_info(model: Network, channels: int = 3) -> dict[str, FeatureInfo]:
    """Return the features of a network by name: its own in order, then its blocks'.

    Only shapes are computed.

    Args:
        model: network of any family.
        channels: channels of the images.
    """
    order: list[str] = []  # JAX sorts a dict

    def trace(images):
        names = [block.name for block in model.blocks]
        call = {"train": False, "rngs": {"params": jax.random.key(0)}}
        own, blocks, _ = _run(model, {}, images, names, True, **call)
        order.extend([*own, *blocks])
        return own | blocks

    images = jax.ShapeDtypeStruct((1, *_SHAPE, channels), jnp.float32)
    shapes = {name: x.shape for name, x in jax.eval_shape(trace, images).items()}

    def info(shape):
        stride = round(_SHAPE[0] / shape[1]) if len(shape) == 4 else None
        return FeatureInfo(stride, shape[-1])

    return {name: info(shapes[name]) for name in order}


def features(
    model: Network,
    variables: Mapping[str, Any],
    images: jax.Array,
    names: Iterable[str],
    *,
    train: bool = False,
    gates: Any = None,
    paths: Any = None,
    rngs: Mapping[str, jax.Array] | None = None,
    mutable: Sequence[str] = (),
) -> Any:
    """Return features of one forward pass by name: {name: f[B, H / stride, ..., C]}.

    They are differentiable by the variables and the images. Call it inside `jax.jit`,
    which leaves out what no result needs, such as later stages and the classifier.

    Features of stages change nothing else. With those of blocks, closed blocks are
    computed too, without an effect on any value, and a DenseNet with `remat="all"`
    keeps its layers. The feature of a dense layer is the maps that it adds.

    Args:
        model: network of any family.
        variables: its collections, as `model.init` returns them.
        images: f[B, H, W, C], normalised.
        names: of features, among those of `feature_info(model)`.
        train, gates, paths: as in the network's call, see `Network`.
        rngs: keys, such as {"dropout": key}.
        mutable: collections to return updated, such as ["batch_stats"] in training.

    Returns:
        The features; with `mutable`, as from Flax's `apply`, (features, updates).

    Raises:
        InputError: there is no feature of a name, or the network rejects an argument.
    """
    names = list(names)
    wanted = [block.name for block in model.blocks if block.name in names]
    call = {"train": train, "gates": gates, "paths": paths, "rngs": rngs}
    written = ["features", *mutable]
    own, blocks, updates = _run(model, variables, images, wanted, written, **call)
    found = own | blocks
    for name in names:
        if name not in found:
            known = [*own, *(block.name for block in model.blocks)]
            raise unknown_name("feature", name, known)
    chosen = {name: found[name] for name in names}
    if not mutable:
        return chosen
    return chosen, {key: updates[key] for key in updates if key in mutable}


def _run(model, variables, images, blocks, mutable, **call):
    """Return what a call sows as features, the outputs of blocks, and its updates."""
    stages = {name.partition("/")[0] for name in blocks}
    # A stage's scan is captured whole, with its first block, as `unstack` needs it.
    parts = {f"{stage}/{part}" for stage in stages for part in ("first", "blocks")}
    places = parts.union(blocks)

    def is_wanted(module, method):
        return method == "__call__" and "/".join(module.path) in places

    _, updates = model.apply(
        variables,
        images,
        mutable=mutable,
        capture_intermediates=is_wanted if blocks else False,
        **call,
    )
    captured = unstack({"blocks": updates.get("intermediates", {})})["blocks"]
    outputs = {}
    for name in blocks:
        stage, block = name.split("/")
        outputs[name] = captured[stage][block]["__call__"][0]
    return updates.get("features", {}).get("by_name", {}), outputs, updates
