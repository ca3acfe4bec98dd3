# SPDX-License-Identifier: Apache-2.0
"""Norms of the gradient by layer, against finite differences and another network."""

import re
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rn_jax import create_model, features, unstack
from rn_jax.analysis import gradients
from rn_jax.models.normalization import Identity
from rn_jax.models.preact import ConstantScaling, FullPreactivation
from rn_jax.models.resnet import BasicBlock, PlainLayer, ResNet

IMAGE = (8, 8, 3)
SMALL_VGG = {"stage_sizes": (1, 1), "features": (4, 8), "hidden": (8,)}


def normalise(pixels):
    return pixels.astype(jnp.result_type(float)) / 64 - 2


def batch():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, *IMAGE), dtype=np.uint8)
    return {"image": pixels, "label": np.array([0, 1, 2, 2, 1, 0], np.int32)}


def loss_of(model, variables, params, gates):
    logits, _ = model.apply(
        {**variables, "params": params},
        normalise(batch()["image"]),
        train=True,
        gates=jnp.asarray(gates)[:, None],
        mutable=["batch_stats"],
    )
    chances = jax.nn.log_softmax(logits)
    return -chances[jnp.arange(6), batch()["label"]].mean()


@pytest.mark.parametrize(
    "block",
    [
        BasicBlock,
        pytest.param(FullPreactivation, marks=pytest.mark.slow),
        pytest.param(PlainLayer, marks=pytest.mark.slow),
    ],
)
def test_norms_by_finite_differences(random_variables, block):
    """Along the gradient itself, the loss changes by the squared norm."""
    model = ResNet((2, 2), num_classes=3, features=(4, 8), block=block)
    variables = random_variables(model, IMAGE)
    gates = np.ones(4, np.float32)
    measure = gradients.make_layer_gradients(model=model, preprocess=normalise)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        found = measure(wide, gates, batch())
        loss = jax.jit(partial(loss_of, model, wide, gates=gates))
        gradient = jax.grad(loss)(wide["params"])
        kernels = {"stem_conv": ("stem_conv",), "head": ("head",)}
        kernels["stage2/block01/" + first_of(block)] = (
            "stage2",
            "first",
            first_of(block),
        )
        for name, path in kernels.items():
            direction = gradient
            for part in path:
                direction = direction[part]
            step = 1e-4 * direction["kernel"]

            def moved(sign, path=path, step=step):
                def change(tree, path):
                    if not path:
                        return {**tree, "kernel": tree["kernel"] + sign * step}
                    return {**tree, path[0]: change(tree[path[0]], path[1:])}

                return loss(change(wide["params"], path))

            squared = (moved(1) - moved(-1)) / 2e-4
            np.testing.assert_allclose(found["weights"][name] ** 2, squared, rtol=1e-4)


def first_of(block):
    return "conv" if block is PlainLayer else "conv1"


def test_norm_by_the_output_is_that_by_a_bias_of_every_pixel(random_variables):
    """The stem's output is moved by hand, in one example, place and channel."""
    model = ResNet((1,), num_classes=3, features=(4,), block=PlainLayer, norm=Identity)
    variables = random_variables(model, IMAGE)
    measure = gradients.make_layer_gradients(model=model, preprocess=normalise)
    found = measure(variables, np.ones(1, np.float32), batch())
    kernel, after = (variables["params"]["stem_conv"]["kernel"], variables["params"])
    images = normalise(batch()["image"])
    dims = ("NHWC", "HWIO", "NHWC")

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=dims
        )

    def loss(stem):
        x = jax.nn.relu(stem)
        layer = jax.tree.leaves(after["stage1"])[0]
        x = jax.nn.relu(conv(x, layer.reshape(layer.shape[-4:])))
        head = after["head"]
        logits = x.mean((1, 2)) @ head["kernel"] + head["bias"][None]
        return -jax.nn.log_softmax(logits)[jnp.arange(6), batch()["label"]].mean()

    gradient = jax.grad(loss)(conv(images, kernel))
    expected = np.linalg.norm(np.asarray(gradient).ravel())
    np.testing.assert_allclose(found["outputs"]["stem_conv"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet20", {"stage_sizes": (2, 2), "features": (4, 8)}),
        ("ror3_110", {"stage_sizes": (2, 2), "features": (4, 8)}),
        ("highway19", {"stage_sizes": (2, 2), "features": (4, 8), "last_features": 4}),
        pytest.param(
            "densenet_bc100_12",
            {"depth": 10, "growth_rate": 4},
            marks=pytest.mark.slow,
        ),
        (
            "vgg15",
            {
                "stage_sizes": (1, 1),
                "features": (4, 8),
                "hidden": (8,),
                "conv_dropout": (0, 0),
            },
        ),
    ],
)
def test_layers_of_every_family_are_in_order(random_variables, name, fields):
    model = create_model(name, num_classes=3, **fields)
    image = (16, 16, 3)
    variables = random_variables(model, image)
    measure = gradients.make_layer_gradients(model=model, preprocess=normalise)
    pixels = np.random.default_rng(0).integers(0, 256, (4, *image), dtype=np.uint8)
    given = {"image": pixels, "label": np.array([0, 1, 2, 0], np.int32)}
    found = measure(variables, np.ones(model.num_blocks, np.float32), given)
    names = list(found["weights"])
    assert names[-1] == "head"
    assert names[0].startswith("stage1" if name == "vgg15" else ("stem", "conv1"))
    kernels = [
        path
        for path, _ in jax.tree_util.tree_leaves_with_path(unstack(variables)["params"])
        if path[-1].key == "kernel"
    ]
    assert len(names) == len(kernels)
    assert set(found["outputs"]) == set(names) - {"head", "fc1"}
    assert all(norm > 0 for norms in found.values() for norm in norms.values())
    stages = [name for name in names if name.startswith(("stage", "transition"))]
    assert stages == sorted(stages, key=lambda n: (re.search(r"\d", n)[0], n))


# --- By the inputs of blocks ----------------------------------------------------------


def through_shortcuts(model, variables, scale):
    """Norms by NumPy: factors of the shortcuts, and masks of ReLUs after the sums."""
    images, labels = normalise(batch()["image"]), batch()["label"]
    names = [block.name for block in model.blocks]

    @jax.jit
    def outputs(images):
        given = {"gates": np.ones(len(names), np.float32), "mutable": ["batch_stats"]}
        return features(model, variables, images, names, train=True, **given)[0]

    found = {name: np.asarray(x) for name, x in outputs(images).items()}
    head = {k: np.asarray(v) for k, v in variables["params"]["head"].items()}
    last = found[names[-1]]
    logits = last.mean((1, 2)) @ head["kernel"] + head["bias"]
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    by_logits = (chances - np.eye(3)[labels]) / len(labels)
    pixels = last.shape[1] * last.shape[2]
    by_pixel = (by_logits @ head["kernel"].T / pixels)[:, None, None]
    gradient = np.broadcast_to(by_pixel, last.shape)
    norms = {}
    for block in reversed(model.blocks):
        gradient = scale * gradient * (found[block.name] > 0)
        if not block.same_shape:  # every second pixel, and zeros for new channels
            size, side = gradient.shape[-1] // 2, 2 * gradient.shape[1]
            wide = np.zeros((len(labels), side, side, size))
            wide[:, ::2, ::2] = gradient[..., :size]
            gradient = wide
        norms[block.name] = np.linalg.norm(gradient)
    return norms


@pytest.mark.parametrize(
    ("block", "scale"), [(BasicBlock, 1.0), (ConstantScaling, 0.5)]
)
def test_gradient_through_shortcuts_is_a_product_of_masks(
    random_variables, block, scale
):
    """The branches add nothing to it, though the masks are those of whole sums."""
    model = ResNet((3, 3), num_classes=3, features=(4, 8), block=block)
    variables = random_variables(model, IMAGE)
    measure = gradients.make_block_gradients(model=model, preprocess=normalise)
    ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
    found = measure(variables, ones, batch(), zeros)
    assert list(found) == [block.name for block in model.blocks]
    expected = through_shortcuts(model, variables, scale)
    assert all(0 < found[n] <= scale * found[m] for n, m in pairwise(found))
    for name, norm in found.items():
        np.testing.assert_allclose(norm, expected[name], rtol=1e-4)


def test_gradient_through_shortcuts_of_preactivation_is_constant(random_variables):
    """Within a stage, from its second block to the input of the next stage."""
    model = ResNet((3, 4), num_classes=3, features=(4, 8), block=FullPreactivation)
    variables = random_variables(model, IMAGE)
    measure = gradients.make_block_gradients(model=model, preprocess=normalise)
    ones, zeros = np.ones(7, np.float32), np.zeros(7, np.float32)
    first, second = np.split(
        list(measure(variables, ones, batch(), zeros).values()), [4]
    )
    np.testing.assert_array_equal(first, first[0])
    np.testing.assert_array_equal(second, second[0])
    assert 0 < first[0] < second[0]
    whole = list(measure(variables, ones, batch(), None).values())
    assert len(set(map(float, whole))) == 7


def test_whole_gradient_by_an_input_is_that_along_all_paths(random_variables):
    """Linear in the path: for one block, branch and shortcut are all there is."""
    model = ResNet((1,), num_classes=3, features=(4,))
    variables = random_variables(model, IMAGE)
    measure = gradients.make_block_gradients(model=model, preprocess=normalise)
    one = np.ones(1, np.float32)
    whole, shortcut, branch = (
        float(measure(variables, one, batch(), paths)["stage1/block01"])
        for paths in (None, 0 * one, one)
    )
    half = float(measure(variables, one, batch(), one / 2)["stage1/block01"])
    assert half == pytest.approx(whole / 2, rel=1e-5)
    assert abs(branch - shortcut) < whole < branch + shortcut
