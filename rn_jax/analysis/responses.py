# SPDX-License-Identifier: Apache-2.0
"""Responses of a network's layers (He et al. 2015, figure 7)."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rn_jax.models.layers import Conv
from rn_jax.models.network import Network
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.trunk import unstack

_LAYERS = (Conv, BatchNorm, nn.Dense)


def make_response_moments(
    *, model: Network, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable:
    """Make response_moments(variables, gates, images) -> {layer: f32[2]}.

    It returns the mean and the mean square, over examples, pixels and channels, of the
    output of every layer of the blocks, in order, with names like
    "stage1/block02/conv1". As in the paper, the output is that of its BatchNorm, before
    the activation or the sum; if BatchNorm precedes the layer or is absent, it is that
    of the convolution or fully connected layer. Shortcuts are excluded.

    Args:
        model: network, called with `train=False` and the gates f32[L].
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
    """

    @jax.jit
    def moments(variables, gates, images):
        _, updates = model.apply(
            variables,
            preprocess(images),
            train=False,
            gates=jnp.asarray(gates)[:, None],
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, _LAYERS),
        )
        return {
            name: jnp.stack([x.mean(), jnp.square(x).mean()])
            for name, x in _responses(unstack(updates)["intermediates"], model)
        }

    return moments


def standard_deviations(moments: Iterable[Mapping[str, jax.Array]]) -> dict[str, float]:
    """Return the layers' standard deviations from moments of equally large batches."""
    batches = [jax.device_get(batch) for batch in moments]
    deviations = {}
    for name in batches[0]:
        mean, square = np.mean([b[name] for b in batches], axis=0, dtype=float)
        deviations[name] = float(np.sqrt(max(square - mean**2, 0.0)))
    return deviations


def _responses(features, model) -> Iterator[tuple[str, jax.Array]]:
    for block in model.blocks:
        stage, name = block.name.split("/")
        captured = {
            "/".join(part.key for part in path[:-2]): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(features[stage][name])
            if path[-2].key == "__call__"
        }
        for layer, output in captured.items():
            kind = layer.rpartition("/")[2]
            if layer.startswith("shortcut") or kind.startswith(("bn", "gate")):
                continue
            norm = layer.replace("conv", "bn")
            if not model.norm_first and norm in captured:
                output = captured[norm]
            yield f"{block.name}/{layer}", output.astype(jnp.float32)
