# SPDX-License-Identifier: Apache-2.0
"""What blocks carry and add: distributions of summed and of concatenated features."""

from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rn_jax.models.densenet import DenseBlock, DenseNet
from rn_jax.models.network import Network
from rn_jax.models.resnet import Block
from rn_jax.models.trunk import unstack

FEATURES = ("carried", "added", "combined")
# Largest number of values of either array from which the distance is computed.
SAMPLE = 10_000


def make_combination(
    *, model: Network, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable:
    """Make combination(variables, gates, images) -> {block: {...}}, for `statistics`.

    For each block it returns the mean and the mean square, f32[2], over examples,
    pixels and channels, of three arrays, and the two numbers below them:

    - "carried": the shortcut's output h(x); in a DenseNet, all earlier maps;
    - "added": the branch gate * F(x); in a DenseNet, the layer's new maps;
    - "combined": their sum, before the activation; in a DenseNet, all maps together;
    - "share": f32[], the share of the channels that are carried: 1/2 in a sum;
    - "distance": f32[], the Kolmogorov-Smirnov distance of carried and added, the
      largest difference of their distribution functions, in [0, 1]. Of large arrays,
      10,000 values are drawn, always the same.

    Args:
        model: `ResNet` with shortcuts, or `DenseNet`; called with `train=False` and the
            gates f32[L].
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
    """

    def is_combined(module, method):
        return (isinstance(module, Block) and method == "sum") or (
            isinstance(module, DenseBlock) and method == "__call__"
        )

    @jax.jit
    def combination(variables, gates, images):
        gates = jnp.asarray(gates)
        _, updates = model.apply(
            variables,
            preprocess(images),
            train=False,
            gates=gates[:, None],
            mutable=["intermediates"],
            capture_intermediates=is_combined,
        )
        terms = _concatenated if isinstance(model, DenseNet) else _summed
        features = unstack(updates)["intermediates"]
        return {
            name: {
                **{
                    kind: jnp.stack([x.mean(), jnp.square(x).mean()])
                    for kind, x in zip(FEATURES, arrays, strict=True)
                },
                "share": jnp.float32(_share(*arrays[:2])),
                "distance": _distance(*arrays[:2]),
            }
            for name, arrays in terms(features, model, gates)
        }

    return combination


def _summed(features, model, gates) -> Iterator[tuple[str, tuple[jax.Array, ...]]]:
    for block, gate in zip(model.blocks, gates, strict=True):
        stage, name = block.name.split("/")
        captured = features[stage][name]
        total = captured["sum"][0].astype(jnp.float32)
        added = gate * captured["residual"][0].astype(jnp.float32)
        yield block.name, (total - added, added, total)


def _concatenated(features, model, gates):
    size = dict.fromkeys((b.stage for b in model.blocks), 0)
    for block in model.blocks:
        size[block.stage] += 1
    for block in model.blocks:
        stage, name = block.name.split("/")
        maps = features[stage]["__call__"][0].astype(jnp.float32)
        place = int(name.removeprefix("layer"))
        end = maps.shape[-1] - (size[block.stage] - place) * model.growth_rate
        new = end - model.growth_rate
        yield block.name, (maps[..., :new], maps[..., new:end], maps[..., :end])


def _share(carried, added):
    return carried.shape[-1] / (carried.shape[-1] + added.shape[-1])


def _distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the Kolmogorov-Smirnov distance of the values of two arrays, f32[]."""
    a, b = jnp.sort(_sample(a)), jnp.sort(_sample(b))

    def below(x):
        places = jnp.concatenate([a, b])
        count = jnp.searchsorted(x, places, side="right")
        return count.astype(jnp.float32) / len(x)

    return jnp.abs(below(a) - below(b)).max()


def _sample(x):
    if x.size <= SAMPLE:
        return x.ravel()
    return x.ravel()[np.random.default_rng(0).integers(x.size, size=SAMPLE)]


def statistics(
    batches: list[Mapping[str, Mapping[str, np.ndarray]]],
) -> dict[str, dict[str, float]]:
    """Return each block's standard deviations, ratios of variances and distance.

    "carried", "added" and "combined" are standard deviations; "distance" is the mean
    over batches. "variance_ratio" is the variance of the combination, divided by the
    mean variance over the channels of both parts; "concatenated_ratio" is that of a
    concatenation of these parts. By the law of total variance a concatenation has at
    least 1, and 1 if the parts have the same mean; a sum of uncorrelated parts has 2.

    Args:
        batches: results of `combination` for equally large batches.
    """
    found = {}
    for name in batches[0]:
        mean = {
            kind: np.mean([np.asarray(b[name][kind], float) for b in batches], axis=0)
            for kind in (*FEATURES, "share", "distance")
        }
        variance = {k: max(mean[k][1] - mean[k][0] ** 2, 0.0) for k in FEATURES}
        share = mean["share"]
        parts = share * variance["carried"] + (1 - share) * variance["added"]
        apart = share * (1 - share) * (mean["carried"][0] - mean["added"][0]) ** 2
        ratios = {"variance": variance["combined"], "concatenated": parts + apart}
        found[name] = {
            **{kind: float(np.sqrt(variance[kind])) for kind in FEATURES},
            **{
                f"{k}_ratio": float(v / parts) if parts else 1.0
                for k, v in ratios.items()
            },
            "distance": float(mean["distance"]),
        }
    return found
