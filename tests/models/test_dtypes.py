# SPDX-License-Identifier: Apache-2.0
"""The dtype of the computation reaches every layer of every kind of network.

Networks are traced, not compiled. With strict promotion, which holds for all tests,
most layers that leave the dtype raise an error; these tests find the others.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rn_jax import StochasticDepth, create_model, sample_gates
from rn_jax.models import preact, resnet, resnext
from rn_jax.models.layers import SHORTCUTS
from rn_jax.models.resnet import ResNet
from rn_jax.stochastic_depth import Subset

BLOCKS = {
    "bottleneck_1x1": (resnet.Bottleneck, {"stride_on": "1x1"}),
    "bottleneck_groups": (resnet.Bottleneck, {"groups": 2, "base_width": 32}),
    "plain": (resnet.PlainLayer, {}),
    "plain_max_pool": (resnet.PlainLayer, {"downsample": "max_pool"}),
    "scaling": (preact.ConstantScaling, {}),
    "exclusive_gating": (preact.ExclusiveGating, {}),
    "shortcut_gating": (preact.ShortcutOnlyGating, {}),
    "dropout_shortcut": (preact.DropoutShortcut, {}),
    "bn_after_addition": (preact.BatchNormAfterAddition, {}),
    "relu_before_addition": (preact.ReluBeforeAddition, {}),
    "relu_only_preact": (preact.ReluOnlyPreactivation, {}),
    "preact": (preact.FullPreactivation, {"dropout": 0.3}),
    "preact_bottleneck": (preact.FullPreactivation, {"bottleneck": True}),
    "resnext_a": (resnext.SplitTransformMerge, {"groups": 2, "base_width": 32}),
    "resnext_b": (resnext.EarlyConcatenation, {"groups": 2, "base_width": 32}),
}
# The other families and, of residual networks, stems, heads and memory.
FIELDS = {
    "resnet_bias": ("resnet18", {"conv_bias": True, "remat": "none"}),
    "resnet_features": ("resnet18", {"num_classes": None, "remat": "all"}),
    "resnetv2": ("resnetv2_18", {}),
    "densenet": ("densenet40_12", {"dropout": 0.2}),
    "densenet_bc": ("densenet_bc100_12", {"remat": "all"}),
    "densenet_imagenet": ("densenet121", {"num_classes": None}),
    "highway": ("highway19", {"stage_sizes": (1, 1), "features": (4, 8)}),
    "highway_mlp": ("highway10_mnist", {"depth": 3, "width": 8}),
    "vgg": ("vgg11", {"hidden": (8,)}),
    "vgg_small": ("vgg15", {"conv_dropout": (0.3, 0.4)}),
    "googlenet_2014": ("googlenet_2014", {}),
    "googlenet_small": ("googlenet", {"stem": "small"}),
    "alexnet_2012": ("alexnet_2012", {}),
    "alexnet_small": ("alexnet", {"stem": "small"}),
}
SIZES = {
    "resnet": {"stage_sizes": (1, 1), "features": (4, 8)},
    "densenet": {"stage_sizes": (1, 1), "growth_rate": 4},
    "vgg": {"stage_sizes": (1, 1), "features": (4, 8)},
}
# Traced in every run of the tests; together they have all layers.
FAST = {
    *("shortcut_A_pooled", "shortcut_B", "plain_max_pool", "scaling", "preact"),
    *("exclusive_gating", "dropout_shortcut", "densenet", "densenet_imagenet"),
    *("highway", "highway_mlp", "vgg_small", "googlenet_small", "alexnet_2012"),
}
FAST_IN_64_BITS = {"shortcut_A_pooled", "densenet", "vgg_small", "alexnet_2012"}
KINDS = [f"shortcut_{kind}" for kind in SHORTCUTS] + [*BLOCKS, *FIELDS]
# Of dtype, whether 64 bits are allowed, and the dtype that is expected.
DTYPES = {
    "bfloat16": ("bfloat16", False, jnp.bfloat16),
    "float16": ("float16", False, jnp.float16),
    "float32": ("float32", True, jnp.float32),
    "of the images": (None, True, jnp.float32),
}


def make(kind, **fields):
    if kind in BLOCKS:
        block, kwargs = BLOCKS[kind]
        if block is resnet.PlainLayer:
            fields["shortcut"] = None
        features = (16, 32)
        return ResNet(
            (1, 1), features, block=block, block_kwargs=kwargs, num_classes=3, **fields
        )
    if kind not in FIELDS:
        shortcut = kind.removeprefix("shortcut_")
        return ResNet((1, 1), (4, 8), shortcut=shortcut, num_classes=3, **fields)
    name, own = FIELDS[kind]
    sizes = next((v for k, v in SIZES.items() if name.startswith(k)), {})
    own = {"num_classes": 3, **own, **fields}
    return create_model(name).clone(**{**sizes, **own})


def images_of(kind, dtype="float32"):
    size = 64 if kind in ("alexnet_2012", "googlenet_2014") else 15
    return jax.ShapeDtypeStruct((2, size, size, 3), dtype)


def bits(allowed):
    return jax.enable_x64(True) if allowed else contextlib.nullcontext()


def assert_dtypes(kind, variables, expected):
    assert variables["intermediates"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = jax.tree_util.keystr(path)
        wide = path[0].key in ("params", "batch_stats") or "transform_gate_sum" in name
        assert leaf.dtype == (jnp.float32 if wide else expected), name


KEYS = {"params": 0, "dropout": 1, "gates": 2}


def keys():
    return {name: jax.random.key(seed) for name, seed in KEYS.items()}


def slow_unless(fast):
    marks = pytest.mark.slow
    return [kind if kind in fast else pytest.param(kind, marks=marks) for kind in KINDS]


@pytest.mark.parametrize("kind", slow_unless(FAST))
def test_every_intermediate_has_the_dtype_of_the_computation(kind):
    check_initialisation(kind, "bfloat16")


@pytest.mark.parametrize("kind", slow_unless(FAST_IN_64_BITS))
def test_no_intermediate_has_64_bits_where_they_are_allowed(kind):
    check_initialisation(kind, "of the images")


def check_initialisation(kind, case):
    dtype, wide, expected = DTYPES[case]
    model = make(kind, dtype=dtype)
    with bits(wide):
        logits, variables = jax.eval_shape(
            lambda x: model.init_with_output(
                keys(), x, train=False, mutable=True, capture_intermediates=True
            ),
            images_of(kind),
        )
    assert logits.dtype == expected
    assert_dtypes(kind, variables, expected)


def gates_of(model):
    """Gates of every form that the network takes, and None."""
    blocks = model.num_blocks
    forms = [np.ones(blocks, "float32"), None, np.ones((blocks, 2), "float32")]
    if model.has_shortcuts:
        indices = np.zeros((blocks, 1), "int32")
        forms.append(Subset(indices, np.ones((blocks, 1), "float32")))
    return forms


def check_calls(kind, case, *, trains, captures, forms=None):
    """Intermediates, logits and gradients with gates of `forms` forms, or of all."""
    dtype, wide, expected = DTYPES[case]
    model = make(kind, dtype=dtype)
    with bits(wide):
        variables = jax.eval_shape(
            lambda x: model.init(keys(), x, train=False), images_of(kind)
        )
        for gates in gates_of(model)[:forms]:
            for train in trains:
                for capture in captures:
                    sown = ["intermediates"] if capture else []

                    def loss(params, images, gates, train=train, sown=sown):
                        logits, updates = model.apply(
                            {**variables_of(params), "params": params},
                            images,
                            train=train,
                            gates=gates,
                            rngs=keys(),
                            mutable=["batch_stats", "aux_logits", *sown],
                            capture_intermediates=bool(sown),
                        )
                        return logits.astype("float32").sum(), (logits, updates)

                    def variables_of(params):
                        return jax.tree.map(
                            lambda leaf: jnp.ones(leaf.shape, leaf.dtype),
                            {k: v for k, v in variables.items() if k != "params"},
                        )

                    images = images_of(kind, expected)
                    grads, (logits, updates) = jax.eval_shape(
                        jax.grad(loss, has_aux=True), variables["params"], images, gates
                    )
                    assert logits.dtype == expected
                    assert {g.dtype for g in jax.tree.leaves(grads)} == {
                        np.dtype("float32")
                    }
                    aux = jax.tree.leaves(updates.get("aux_logits", {}))
                    assert {leaf.dtype for leaf in aux} <= {np.dtype(expected)}
                    if capture:
                        assert_dtypes(kind, updates, expected)


@pytest.mark.parametrize("case", ["float16", "float32"])
def test_conditionals_of_densenets_have_one_dtype(case):
    check_calls("densenet", case, trains=(True,), captures=(False,), forms=1)


@pytest.mark.slow
@pytest.mark.parametrize("case", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_call_has_the_dtype_of_the_computation(kind, case):
    check_calls(kind, case, trains=(False, True), captures=(False, True))


@pytest.mark.slow
@pytest.mark.parametrize("case", DTYPES)
def test_the_rule_of_stochastic_depth_keeps_the_dtype(case):
    dtype, wide, expected = DTYPES[case]
    for kind in ("shortcut_A_pooled", "exclusive_gating", "densenet", "highway"):
        depth = StochasticDepth(0.5)
        model = make(kind, dtype=dtype, stochastic_depth=depth)
        with bits(wide):
            for train in (False, True):
                logits, variables = jax.eval_shape(
                    lambda x, train=train, model=model: model.init_with_output(
                        keys(), x, train=train, mutable=True, capture_intermediates=True
                    ),
                    images_of(kind),
                )
                assert logits.dtype == expected
                assert_dtypes(kind, variables, expected)
            gates = sample_gates(jax.random.key(0), depth, model.num_blocks)
            assert gates.dtype == jnp.float32
