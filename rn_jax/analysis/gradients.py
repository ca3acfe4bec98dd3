# SPDX-License-Identifier: Apache-2.0
"""Norm of the loss's gradient by each layer's weights and outputs, and by blocks."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rn_jax.models.layers import Conv
from rn_jax.models.network import Network
from rn_jax.models.trunk import unstack


class _Perturbed(Conv):
    """A convolution whose output has a gradient, that of zeros added to it."""

    def __call__(self, x):
        return self.perturb("output", super().__call__(x))


def make_layer_gradients(
    *, model: Network, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable:
    """Make layer_gradients(variables, gates, batch), compiled once.

    It returns {"weights": {layer: f32[]}, "outputs": {layer: f32[]}}, the Euclidean
    norms of the gradient of the mean cross-entropy in nats by every kernel, and by the
    output of every convolution over the mini-batch, with names like
    "stage1/block02/conv1" in the order of the layers. BatchNorm uses the statistics of
    the mini-batch, as in training. `gates` are f32[L], and `batch` has "image"
    uint8[B, H, W, C] and "label" i32[B]. "outputs" is empty if the network's
    convolutions are not `Conv`.

    Args:
        model: network, called with `train=True` and the gates.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
    """
    if model.conv is Conv:
        model = model.copy(conv=_Perturbed)
    gradient = _make_gradient(model, preprocess)

    @jax.jit
    def norms(variables, gates, batch):
        weights, outputs = gradient(variables, gates, batch, None)
        return {
            "weights": _norms(weights, "kernel"),
            "outputs": _norms(outputs, "output"),
        }

    def layer_gradients(variables, gates, batch):
        found = norms(variables, gates, batch)
        return {kind: _in_order(layers) for kind, layers in found.items()}

    return layer_gradients


def make_block_gradients(
    *, model: Network, preprocess: Callable[[jax.Array], jax.Array]
) -> Callable:
    """Make block_gradients(variables, gates, batch, paths), compiled once.

    It returns {block: f32[]}, in order, the Euclidean norms of the gradient of the mean
    cross-entropy in nats by the input x_l of every block over the mini-batch. `paths`
    are f32[L], or None for the sum over all paths: values are those of the whole
    network, and the gradient follows the path alone. With zeros it passes through the
    shortcuts h and the functions f after the sums, and no branch F: only the first term
    of He et al. 2016, equation 5, if both are the identity. The other arguments are
    those of `make_layer_gradients`.

    Args:
        model: network of blocks with sums, called with `train=True`, the gates and the
            paths.
        preprocess: uint8[B, H, W, C] -> normalised f[B, H, W, C].
    """
    stages = {f"stage{block.stage}" for block in model.blocks}
    # A stage is a scan of blocks, or has a module for each.
    places = {f"{stage}/{part}" for stage in stages for part in ("first", "blocks")}
    places |= {block.name for block in model.blocks}

    def perturb_input(call, args, kwargs, context):
        block = context.module
        if context.method_name == "__call__" and "/".join(block.path) in places:
            x, *rest = args
            args = block.perturb("input", x), *rest
        return call(*args, **kwargs)

    gradient = _make_gradient(model, preprocess)

    @jax.jit
    def norms(variables, gates, batch, paths):
        with nn.intercept_methods(perturb_input):
            _, inputs = gradient(variables, gates, batch, paths)
        return _norms(inputs, "input")

    def block_gradients(variables, gates, batch, paths):
        found = norms(variables, gates, batch, paths)
        return {block.name: found[block.name] for block in model.blocks}

    return block_gradients


def _make_gradient(model, preprocess):
    """Return a function of the loss's gradients by parameters and perturbations."""

    def gradient(variables, gates, batch, paths):
        images = preprocess(batch["image"])
        rest = {name: v for name, v in variables.items() if name != "params"}
        given: Any = {"gates": jnp.asarray(gates)[:, None]} if len(gates) else {}
        key = jax.random.key(0)

        def apply(variables, *mutable) -> Any:
            return model.apply(
                variables,
                images,
                train=True,
                paths=paths,
                rngs={"dropout": key, "gates": key},
                mutable=["batch_stats", *mutable],
                **given,
            )

        _, state = jax.eval_shape(lambda: apply(variables, "perturbations"))
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            state.get("perturbations", {}),
        )

        def loss(params, perturbations):
            logits, _ = apply(
                {"params": params, "perturbations": perturbations, **rest}
            )
            return optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), batch["label"]
            ).mean()

        return jax.grad(loss, (0, 1))(variables["params"], zeros)

    return gradient


def _norms(gradient, kind):
    leaves = jax.tree_util.tree_leaves_with_path(unstack({"of": gradient}))
    return {
        "/".join(part.key for part in path[1:-1]): _norm(leaf)
        for path, leaf in leaves
        if path[-1].key == kind
    }


def _norm(leaf):
    largest = jnp.abs(leaf).max()  # squares of small gradients would underflow
    unit = leaf / jnp.where(largest > 0, largest, 1)
    return largest * jnp.linalg.norm(unit.ravel())


def _in_order(layers):
    """Sort layers from the image to the logits; jit sorts them by name."""
    return {name: layers[name] for name in sorted(layers, key=_place)}


def _place(layer):
    name = layer.partition("/")[0]
    # A transition follows the stage of its number, as does a shortcut over the stage.
    if found := re.fullmatch(r"(stage|transition)(\d+)(_shortcut)?", name):
        return 1, int(found[2]), int(found[1] == "transition"), layer
    behind = ("fc", "last", "root_shortcut")
    after = 3 if name == "head" else 2 if name.startswith(behind) else 0
    return after, 0, 0, layer
