# SPDX-License-Identifier: Apache-2.0
"""Runs that start from the weights of another run or of a file."""

import dataclasses

import flax
import jax
import numpy as np
import optax
import pytest
from driver import arguments, final_state, in_process
from etils import epath
from safetensors.numpy import save_file

import rn_jax
from configs.default import Config
from experiments.config import read_config
from experiments.training import pretrained, setup, trained
from rn_jax import InputError, create_model, train
from rn_jax.interop import from_torch, read_weights, to_torch


def built(workdir, *options):
    """The experiment of a config of the tiny network."""
    config = read_config(epath.Path(workdir))
    return setup.build(dataclasses.replace(config, **dict(options)))


def test_a_run_begins_with_the_weights_of_another_but_a_new_head(run):
    source = final_state(run)
    fresh = built(run, ("seed", 1)).initial_state
    config = Config(init_from=str(run), model="tiny")
    begun = pretrained.initialise(fresh, config)
    for part in ("params", "batch_stats"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(begun, part)):
            key = jax.tree_util.keystr(path)
            if "head" in key:
                leaf_there = getattr(fresh, part)["head"][path[-1].key]
            else:
                leaf_there = source[f"['{part}']{key}"]
            np.testing.assert_array_equal(leaf, leaf_there, err_msg=key)
    assert begun.step == 0
    assert not any(map(np.any, jax.tree.leaves(begun.opt_state)))  # momentum too


def test_frozen_parts_keep_the_weights_that_a_run_begins_with(
    run, tmp_path, monkeypatch
):
    """On two devices, with exact statistics at the end; the rest moves."""
    options = [
        f"--config.init_from={run}",
        "--config.frozen=('stem', 'stage1')",
        "--config.batch_norm_at_test=exact",
        "--config.epochs=1",
    ]
    assert in_process(monkeypatch, arguments(tmp_path / "frozen", *options)) == 0
    before, after = final_state(run), final_state(tmp_path / "frozen")
    for path in before:
        if path.startswith(("['params']", "['batch_stats']")):
            frozen = "['stem_" in path or "['stage1']" in path
            assert np.array_equal(before[path], after[path]) == frozen, path


def test_weights_that_do_not_fit_are_named(run, tmp_path):
    with pytest.raises(InputError, match=r"is not a tiny .* has shape \[.*, 8\], e"):
        wide = built(run, ("model_kwargs", {"features": (16, 16)}))
        config = Config(init_from=str(run), model="tiny")
        pretrained.initialise(wide.initial_state, config)
    state = built(run).initial_state
    with pytest.raises(InputError, match="is not the folder of a run"):
        pretrained.initialise(state, Config(init_from=str(tmp_path), model="tiny"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no checkpoint yet"):
        pretrained.initialise(state, Config(init_from=str(tmp_path), model="tiny"))


def test_weights_of_a_file_of_ours(run, tmp_path):
    file = str(tmp_path / "tiny.safetensors")
    source = trained.finished(str(run))
    rn_jax.save(file, source.model, source.variables)
    fresh = built(run, ("seed", 1)).initial_state

    def begun(source):
        return pretrained.initialise(fresh, Config(model="tiny", init_from=source))

    of_run, of_file = begun(str(run)), begun(file)
    jax.tree.map(np.testing.assert_array_equal, of_file, of_run)
    with pytest.raises(InputError, match="resnet20_digits is not a tiny with these"):
        begun("resnet20_digits")


def zero_state(model, image_shape):
    """The state of a new run with zeros everywhere."""

    def create(key):
        tx = optax.sgd(0.1)
        return train.create_state(key, model=model, tx=tx, image_shape=image_shape)

    shapes = jax.eval_shape(create, jax.random.key(0))
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)


def test_weights_of_a_file(tmp_path):
    """A ResNet-18 of torchvision's names, for other classes."""

    torchvision_names = torch_state(classes=7)
    save_file(torchvision_names, tmp_path / "weights.safetensors")
    model = create_model("resnet18", num_classes=10)
    state = zero_state(model, (64, 64, 3))
    weights = str(tmp_path / "weights.safetensors")
    config = Config(init_from=weights, model="resnet18")
    begun = pretrained.initialise(state, config)
    there = from_torch("resnet18", read_weights(weights))
    np.testing.assert_array_equal(
        begun.params["stage2"]["first"]["conv1"]["kernel"],
        there["params"]["stage2"]["first"]["conv1"]["kernel"],
    )
    assert begun.params["head"]["kernel"].shape == (512, 10)
    assert not begun.params["head"]["kernel"].any()


SMALL = {"stage_sizes": (1, 1), "features": (4, 8)}


@pytest.mark.parametrize(
    "name, fields, theirs, ours",
    [
        ("resnet20", SMALL | {"shortcut": "A_centered"}, 3, 3),
        ("resnet20", SMALL | {"shortcut": "A_centered"}, 3, 1),
        ("resnet20", SMALL | {"shortcut": "A_centered"}, 1, 3),
        ("vgg11_bn", SMALL | {"hidden": (6, 5)}, 3, 1),
    ],
)
@pytest.mark.parametrize("headless", [False, True])
def test_weights_of_other_channels_and_without_a_classifier(
    tmp_path, random_variables, caplog, name, fields, theirs, ours, headless
):
    """The response to an image whose channels are equal stays that of the weights."""

    model = rn_jax.create_model(name, num_classes=7, **fields)
    weights = to_torch(model, random_variables(model, (64, 64, theirs)))
    # Every layer that is fully connected, or only the convolutions.
    heads = ("linear.", "classifier.") if headless else ()
    weights = {k: v for k, v in weights.items() if not k.startswith(heads)}
    save_file(weights, tmp_path / "weights.safetensors")
    state = zero_state(model, (64, 64, ours))
    config = Config(
        init_from=str(tmp_path / "weights.safetensors"),
        model=name,
        model_kwargs=fields,
        dataset="digits",
    )
    begun = pretrained.initialise(state, config)
    stem = begun.params.get("stem_conv") or begun.params["stage1"]["layer01"]["conv"]
    kernel = weights["conv1.weight" if name == "resnet20" else "features.0.weight"]
    kernel = kernel.transpose(2, 3, 1, 0)
    assert stem["kernel"].shape[2] == ours
    np.testing.assert_allclose(stem["kernel"].sum(2), kernel.sum(2), rtol=1e-5)
    assert np.ptp(stem["kernel"], axis=2).any() == (ours == theirs == 3)
    assert not begun.params["head"]["kernel"].any()
    if name == "vgg11_bn":
        assert np.any(begun.params["fc1"]["kernel"]) != headless
    assert ("adapted" in caplog.text) == (ours != theirs)


def test_weights_of_channels_that_cannot_be_adapted(tmp_path, random_variables):
    model = rn_jax.create_model("resnet20", **SMALL)
    three, four = (random_variables(model, (8, 8, n)) for n in (3, 4))
    flat = flax.traverse_util.flatten_dict
    stem = ("params", "stem_conv", "kernel")
    assert pretrained.other_channels(flat(three), flat(four)) == [stem]
    assert pretrained.other_channels(flat(three), flat(three)) == []
    path = str(tmp_path / "four.safetensors")
    rn_jax.save(path, model, four)
    state = zero_state(model, (8, 8, 3))
    config = Config(init_from=path, model="resnet20", dataset="cifar10")
    with pytest.raises(InputError, match="expects 4 channels, but cifar10 has 3: nam"):
        pretrained.initialise(state, config)


def torch_state(classes):
    """Random weights of ResNet-18 under torchvision's names."""
    rng = np.random.default_rng(0)
    state = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (classes, 512)}
    state |= norm("bn1", 64)
    widths = (64, 64, 128, 256, 512)
    for stage in range(1, 5):
        for block in range(2):
            name = f"layer{stage}.{block}"
            before = widths[stage - 1] if block == 0 else widths[stage]
            after = widths[stage]
            state[f"{name}.conv1.weight"] = (after, before, 3, 3)
            state[f"{name}.conv2.weight"] = (after, after, 3, 3)
            state |= norm(f"{name}.bn1", after) | norm(f"{name}.bn2", after)
            if before != after:
                state[f"{name}.downsample.0.weight"] = (after, before, 1, 1)
                state |= norm(f"{name}.downsample.1", after)
    state["fc.bias"] = (classes,)
    return {n: rng.normal(size=s).astype("float32") for n, s in state.items()}


def norm(name, width):
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (width,) for part in parts}


def deepening(source, **fields):
    """A config of a network of 2 and 3 blocks that begins with one of 1 and 1."""
    return Config(
        **{
            "init_from": str(source),
            "init_deepen": True,
            "model": "resnet20",
            "model_kwargs": SMALL | {"stage_sizes": (2, 3)},
            "dataset": "digits",
            **fields,
        }
    )


def test_a_deepened_network_begins_with_the_same_logits(
    tmp_path, random_variables, caplog
):
    image = (8, 8, 1)
    shallow = create_model("resnet20", **SMALL)
    variables = random_variables(shallow, image)
    rn_jax.save(tmp_path / "net.safetensors", shallow, variables)
    deep = shallow.copy(stage_sizes=(2, 3))
    config = deepening(tmp_path / "net.safetensors")
    begun = pretrained.initialise(zero_state(deep, image), config)
    grown = {"params": begun.params, "batch_stats": begun.batch_stats}
    images = np.random.default_rng(0).normal(size=(3, *image)).astype("float32")
    ours, expected = (
        jax.jit(lambda v, model=model: model.apply(v, images, train=False))(v)
        for model, v in ((deep, grown), (shallow, variables))
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    assert begun.step == 0 and not caplog.records
    # Its other layers are drawn, so that it can learn.
    assert np.all(begun.params["stage1"]["blocks"]["conv1"]["kernel"][1])
    config = deepening(config.init_from, stochastic_depth={"last_survival": 0.5})
    pretrained.initialise(zero_state(deep, image), config)
    assert "survival probabilities of this run are not those" in caplog.text


def test_what_cannot_be_deepened_is_said(tmp_path, random_variables):
    image = (8, 8, 1)
    shallow = create_model("resnet20", **SMALL)
    variables = random_variables(shallow, image)
    rn_jax.save(tmp_path / "net.safetensors", shallow, variables)
    state = zero_state(shallow, image)
    for says, fields in (
        (r"none below \(1, 1\), not \(1,\)", {"model_kwargs": {"stage_sizes": (1,)}}),
        ("takes a ResNet, not a DenseNet", {"model": "densenet40_12"}),
    ):
        fields = {"model_kwargs": {}, **fields}
        with pytest.raises(InputError, match=says):
            pretrained.initialise(
                state, deepening(tmp_path / "net.safetensors", **fields)
            )
    with pytest.raises(InputError, match="needs an init_from that says what network"):
        pretrained.initialise(state, deepening("torch.pth"))


@pytest.mark.slow
def test_the_network_of_a_run_is_deepened(run):
    source = read_config(epath.Path(run))
    config = dataclasses.replace(
        source,
        init_from=str(run),
        init_deepen=True,
        model_kwargs={"stage_sizes": (3, 2)},
    )
    begun = pretrained.initialise(setup.build(config).initial_state, config)
    np.testing.assert_array_equal(
        begun.params["head"]["kernel"], final_state(run)["['params']['head']['kernel']"]
    )
