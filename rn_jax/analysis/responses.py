# SPDX-License-Identifier: Apache-2.0
"""How strongly the layers of a network respond (He et al. 2015, figure 7)."""

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
    """Makes response_moments(variables, gates, images) -> {layer: f32[2]}.

    Mean and mean square, over examples, pixels and channels, of the output of every
    layer of the blocks: after its BatchNorm and before the activation or the sum, as in
    the paper; of the convolution itself, or the fully connected layer, where BatchNorm
    comes before it or there is none. Shortcuts are left out. The layers come in order,
    named as "stage1/block02/conv1".

    Args:
        model: called with `train=False` and the gates f32[L].
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


def standard_deviations(
    moments: Iterable[Mapping[str, jax.Array]],
) -> dict[str, float]:
    """The layers' standard deviations from the moments of batches of one size."""
    found = [jax.device_get(batch) for batch in moments]
    deviations = {}
    for name in found[0]:
        mean, square = np.mean([b[name] for b in found], axis=0, dtype=float)
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
