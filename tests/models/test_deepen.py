# SPDX-License-Identifier: Apache-2.0
"""A deepened network computes what the shallow one did."""

import jax
import numpy as np
import pytest

from rn_jax import InputError, create_model
from rn_jax.models.deepen import _LAST_LAYER, deepen

IMAGE = (8, 8, 3)


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "plain20",
        pytest.param("resnet164", marks=pytest.mark.slow),
        pytest.param("resnet164_relu_only_preact", marks=pytest.mark.slow),
        pytest.param("preact_resnet110", marks=pytest.mark.slow),
        pytest.param("preact_resnet164", marks=pytest.mark.slow),
    ],
)
def test_deepened_network_has_the_same_logits(name, quick_compile, random_variables):
    model = create_model(name)
    model = model.copy(stage_sizes=(2, 1), features=model.features[:2])
    variables = random_variables(model, IMAGE)
    deeper, grown = deepen(model, variables, (4, 1), key=jax.random.key(0))
    assert deeper.num_blocks == 5
    images = np.random.default_rng(0).normal(size=(3, *IMAGE)).astype("float32")

    @jax.jit
    def both(variables, grown):
        return (
            model.apply(variables, images, train=False),
            deeper.apply(grown, images, train=False),
        )

    shallow, deep = both(variables, grown)
    tolerance = 1e-5 * np.abs(shallow).max()
    np.testing.assert_allclose(deep, shallow, rtol=0, atol=tolerance)

    # The added blocks can learn: what silences them has a gradient.
    def loss(params):
        logits, _ = deeper.apply(
            {**grown, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return (logits**2).sum()

    grads = jax.jit(jax.grad(loss))(grown["params"])
    for leaf in jax.tree.leaves(grads["stage1"]["blocks"]):
        assert np.isfinite(leaf).all()
    added = jax.tree.map(lambda leaf: leaf[-1], grads["stage1"]["blocks"])
    layers = _LAST_LAYER.get(model.block, ("conv",))
    silent = next(layer for layer in layers if layer in added)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(added[silent]))


def test_what_cannot_be_deepened(random_variables):
    key, small = jax.random.key(0), {"stage_sizes": (1, 1, 1)}
    model = create_model("resnet20").copy(**small)
    variables = random_variables(model, IMAGE)
    with pytest.raises(InputError, match=r"3 entries, none below \(1, 1, 1\)"):
        deepen(model, variables, (2, 0, 1), key=key)
    with pytest.raises(InputError, match="3 entries"):
        deepen(model, variables, (2, 2), key=key)
    for name in (
        "resnet110_conv_shortcut",
        "resnet110_bn_after_addition",
        "resnet110_relu_before_addition",
    ):
        model = create_model(name).copy(**small)
        with pytest.raises(InputError, match="cannot be the identity"):
            deepen(model, variables, (2, 2, 2), key=key)
