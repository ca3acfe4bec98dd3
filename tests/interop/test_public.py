# SPDX-License-Identifier: Apache-2.0
"""The table of public weights against what timm and torchvision register."""

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import rn_jax
from rn_jax import InputError, create_model
from rn_jax.interop import load_public, preprocessing, to_torch
from rn_jax.interop.public import PUBLIC, Preprocessing

TIMM = [name for name in PUBLIC if "IMAGENET1K" not in name]
TORCHVISION = [name for name in PUBLIC if "IMAGENET1K" in name]
IMAGE = np.random.default_rng(0).integers(256, size=(301, 403, 3)).astype("uint8")


def test_every_network_is_in_the_table_of_networks():
    assert {row.network for row in PUBLIC.values()} <= set(rn_jax.list_models())
    assert all(name.split(".")[0] == row.network for name, row in PUBLIC.items())


@pytest.fixture(scope="module")
def timm(torchvision):
    return pytest.importorskip("timm", reason="an optional peer")


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("at_test", [False, True])
def test_timm_registers_the_same(timm, name, at_test):
    config = timm.models.get_pretrained_cfg(name).to_dict()
    assert config["hf_hub_id"] == f"timm/{name}"
    theirs = timm.data.resolve_data_config(
        pretrained_cfg=config, use_test_size=at_test, verbose=False
    )
    ours = preprocessing(f"hf-hub:timm/{name}", at_test=at_test)
    assert theirs["input_size"] == (3, ours.size, ours.size)
    assert theirs["crop_mode"] == "center" and config["num_classes"] == 1000
    for field, key in (("crop", "crop_pct"), ("interpolation", "interpolation")):
        assert getattr(ours, field) == theirs[key], field
    assert (ours.mean, ours.std) == (theirs["mean"], theirs["std"])


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_registers_the_same(torchvision, name):
    network, weights = name.split(".")
    theirs = torchvision.models.get_model_weights(network)[weights].transforms()
    ours = preprocessing(name)
    assert theirs.crop_size == [ours.size]
    assert theirs.resize_size == [int(ours.size / ours.crop)]
    assert theirs.interpolation.value == ours.interpolation
    if network != "googlenet":
        assert (list(ours.mean), list(ours.std)) == (theirs.mean, theirs.std)


def test_googlenet_gets_what_its_transform_makes_of_the_usual_input(torchvision):
    import torch

    usual = preprocessing("resnet50.IMAGENET1K_V1")(IMAGE)
    peer = torchvision.models.googlenet(init_weights=False, transform_input=True)
    x = torch.from_numpy(usual.transpose(2, 0, 1)[None])
    theirs = peer._transform_input(x).numpy()[0].transpose(1, 2, 0)
    ours = preprocessing("googlenet.IMAGENET1K_V1")(IMAGE)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet50.a1_in1k", "resnet18.tv_in1k", "resnetv2_50.a1h_in1k"]
)
@pytest.mark.parametrize("at_test", [False, True])
@pytest.mark.parametrize("size", [(301, 403), (500, 333), (64, 64)])
def test_images_are_timms(timm, name, at_test, size):
    config = timm.models.get_pretrained_cfg(name).to_dict()
    theirs = timm.data.create_transform(
        **timm.data.resolve_data_config(
            pretrained_cfg=config, use_test_size=at_test, verbose=False
        )
    )
    image = np.random.default_rng(1).integers(256, size=(*size, 3)).astype("uint8")
    expected = theirs(Image.fromarray(image)).numpy().transpose(1, 2, 0)
    found = preprocessing(name, at_test=at_test)(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_weights_are_loaded_by_their_name(tmp_path, monkeypatch, random_variables):
    model = create_model("resnet18", num_classes=5)
    variables = random_variables(model, (64, 64, 3))
    path = tmp_path / "model.safetensors"
    save_file(to_torch(model, variables), path)
    asked = []

    def download(name):
        asked.append(name)
        return path

    monkeypatch.setattr("rn_jax.weight_files.download", download)
    loaded = load_public("timm/resnet18.a1_in1k")
    assert asked == ["hf-hub:timm/resnet18.a1_in1k"] and loaded[0] == model
    of_file = load_public("resnet18.IMAGENET1K_V1", path)
    for found in (loaded, of_file):
        kernel = found[1]["params"]["stem_conv"]["kernel"]
        expected = variables["params"]["stem_conv"]["kernel"]
        np.testing.assert_array_equal(kernel, expected)


def test_what_cannot_be_loaded_is_said():
    with pytest.raises(InputError, match="Unknown public weights 'resnet"):
        preprocessing("resnet50.a1")
    with pytest.raises(InputError, match="IMAGENET1K_V2 are not on the Hugging"):
        load_public("resnet50.IMAGENET1K_V2")
    with pytest.raises(InputError, match=r"uint8\[H, W, 3\], in RGB, not float"):
        Preprocessing(8, 1.0, "bilinear")(np.zeros((8, 8, 3)))
