# SPDX-License-Identifier: Apache-2.0
"""The three forms of ResNeXt compute one function (Xie et al. 2017, figure 3)."""

import jax
import numpy as np
import pytest

from rn_jax import InputError, create_model
from rn_jax.models.resnext import convert_form

IMAGE = (8, 8, 3)


def network(form):
    model = create_model("resnext29_4x64d", form=form, num_classes=3)
    return model.copy(
        stage_sizes=(3, 1),
        features=(16, 32),
        stem_features=8,
        block_kwargs={"groups": 2, "base_width": 32},
    )


def results(model, variables, images):
    @jax.jit
    def run(variables):
        def loss(params, images):
            logits, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return (logits**2).sum(), (logits, updates["batch_stats"])

        (_, (logits, stats)), (by_params, by_images) = jax.value_and_grad(
            loss, (0, 1), has_aux=True
        )(variables["params"], images)
        at_test = model.apply(variables, images, train=False)
        # Statistics and gradients belong to variables of this form.
        mine = {"params": by_params, "batch_stats": stats}
        return (logits, at_test, by_images), mine

    return run(variables)


def assert_close(ours, theirs):
    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())

    jax.tree.map(check, ours, theirs)


def test_three_forms_are_one_function(x64, random_variables):
    images = np.random.default_rng(0).normal(size=(4, *IMAGE))
    grouped = network("c")
    variables = random_variables(grouped, IMAGE, "float64")
    expected, expected_mine = results(grouped, variables, images)
    for form in ("a", "b"):
        model = network(form)
        converted = convert_form(variables, model, "c", form)
        shapes = jax.eval_shape(
            lambda model=model: model.init(
                jax.random.key(0), images.astype("float32"), train=False
            )
        )
        assert jax.tree.map(np.shape, converted) == jax.tree.map(np.shape, shapes)
        found, mine = results(model, converted, images)
        assert_close(found, expected)
        assert_close(convert_form(mine, model, form, "c"), expected_mine)
        # A round trip is exact.
        back = convert_form(converted, model, form, "c")
        jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_unknown_form():
    with pytest.raises(InputError, match=r"form 'd'.* a, b, c"):
        create_model("resnext29_8x64d", form="d")
    with pytest.raises(InputError, match="form 'x'"):
        convert_form({}, network("c"), "x", "c")
