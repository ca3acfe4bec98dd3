# SPDX-License-Identifier: Apache-2.0
"""Networks in files: loaded as they were saved; other files are refused."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import rn_jax
from rn_jax import InputError, create_model, data
from rn_jax.models import MODELS
from rn_jax.models.resnet import ResNet

ROOT = Path(rn_jax.__file__).parents[1]


@pytest.mark.slow
def test_every_name_is_found_again_with_and_without_own_fields():
    for name in rn_jax.list_models():
        assert rn_jax.weights.describe(create_model(name)) == (name, {})
        model = create_model(name, num_classes=7, axis_name="devices")
        assert rn_jax.weights.describe(model) == (name, {"num_classes": 7})


def all_fields():
    return {
        "num_classes": 7,
        "stochastic_depth": rn_jax.StochasticDepth(schedule=(0.9, 0.8, 0.7)),
        "shortcut": "B",
        "dtype": jnp.bfloat16,
        "stage_sizes": (1, 1, 1),
        "remat": "none",
    }


@pytest.mark.parametrize(
    "name, fields",
    [
        ("resnet20", all_fields()),
        ("resnet110_scaling_05_1", {"stage_sizes": (1, 2, 1)}),
        ("densenet_bc40_36", {"num_classes": 3, "stage_sizes": (1, 2)}),
        ("highway10_mnist", {}),
        ("vgg15", {"num_classes": 4}),
    ],
)
@pytest.mark.parametrize("layout", [lambda v: v, rn_jax.unstack])
def test_what_is_saved_comes_back(tmp_path, random_variables, name, fields, layout):
    model = create_model(name, **fields)
    shape = (8, 8, MODELS[name].channels)
    variables = random_variables(model, shape)
    rn_jax.save(tmp_path / "net.safetensors", model, layout(variables), info={"a": [1]})
    again, found = rn_jax.load(str(tmp_path / "net.safetensors"))
    assert again == create_model(name, **fields)
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), found, variables)
    info = rn_jax.read_info(tmp_path / "net.safetensors")
    assert (info["a"], info["model"]) == ([1], name)
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_what_comes_with_the_package():
    """The trained networks are small, and have the recorded test errors."""
    names = rn_jax.list_weights()
    files = list((ROOT / "rn_jax" / "trained").iterdir())
    assert sorted(file.stem for file in files) == names
    assert names == ["resnet110_sd_digits", "resnet20_cifar10", "resnet20_digits"]
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 8 * 2**20 and sum(sizes) < 20 * 2**20
    for name in names:
        info = rn_jax.read_info(name)
        assert info["command"].startswith("python -m experiments.")
        assert info["seed"] == info["config"]["seed"] and info["git_revision"]
        assert name.startswith(info["config"]["model"])
    for name in ("resnet110_sd_digits", "resnet20_digits"):
        error, told = error_and_what_is_told(name, data.load("digits").test)
        assert error == pytest.approx(told, abs=0.3)  # an image


def test_the_network_of_cifar10(cifar10_dir):
    """On a fifth of the test images, within four standard deviations."""
    test = data.load("cifar10", data_dir=cifar10_dir).test.take(np.arange(2000))
    error, told = error_and_what_is_told("resnet20_cifar10", test)
    assert error == pytest.approx(told, abs=4 * (told * (100 - told) / 2000) ** 0.5)


def error_and_what_is_told(name, test):
    """Return the measured and the recorded error of trained weights, in percent."""
    model, variables = rn_jax.load(name)
    info = rn_jax.read_info(name)
    assert name.endswith(info["dataset"])
    stats = info["normalization"]
    images = data.normalize(test.images, stats["mean"], stats["std"])
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    found = np.asarray(apply(variables, images)).argmax(-1)
    return 100 * float((found != test.labels).mean()), info["test_error_percent"]


def test_entries_that_need_arguments(tmp_path, monkeypatch, random_variables):
    """A user's entry of that kind does not affect others, and can be saved."""
    monkeypatch.setitem(MODELS, "own", rn_jax.ModelEntry(ResNet, {"block": OwnBlock}))
    assert rn_jax.weights.describe(create_model("resnet20")) == ("resnet20", {})
    model = create_model("own", stage_sizes=(1, 1), features=(4, 8))
    path = tmp_path / "own.safetensors"
    rn_jax.save(path, model, random_variables(model, (8, 8, 3)))
    assert rn_jax.load(path)[0] == model


class Scaled(rn_jax.models.resnet.Block):
    """A block with a parameter that is a single number."""

    def residual(self, x, *, train):
        return self.param("scale", nn.initializers.zeros, ()) * x


def test_single_numbers_keep_their_shape(tmp_path, monkeypatch, random_variables):
    fields = {"stage_sizes": (2,), "features": (4,), "block": Scaled}
    monkeypatch.setitem(MODELS, "scaled", rn_jax.ModelEntry(ResNet, fields))
    model = create_model("scaled")
    variables = random_variables(model, (8, 8, 3))
    rn_jax.save(tmp_path / "x.safetensors", model, variables)
    found = rn_jax.load(tmp_path / "x.safetensors")[1]
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), found, variables)


class OwnBlock(rn_jax.models.resnet.BasicBlock):
    pass


def test_a_network_of_ones_own_needs_a_name(tmp_path, monkeypatch, random_variables):
    model = ResNet((1, 1), features=(4, 8), block=OwnBlock)
    variables = random_variables(model, (8, 8, 3))
    path = tmp_path / "own.safetensors"
    with pytest.raises(InputError, match=r"block is <class .*OwnBlock'>.*register_m"):
        rn_jax.save(path, model, variables)
    assert os.listdir(tmp_path) == []
    with monkeypatch.context() as patch:
        fields = {"stage_sizes": (1, 1), "features": (4, 8), "block": OwnBlock}
        patch.setitem(MODELS, "own", rn_jax.ModelEntry(ResNet, fields))
        rn_jax.save(path, model, variables)
        assert rn_jax.load(path)[0] == model
    with pytest.raises(InputError, match="Unknown model 'own'"):
        rn_jax.load(path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path, monkeypatch, random_variables
):
    model = ResNet((1,), features=(4,))
    variables = random_variables(model, (8, 8, 3))
    path = tmp_path / "net.safetensors"
    rn_jax.save(path, model, variables)
    before = path.read_bytes()
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match=r"cannot be written to .*full"),
    ):
        patch.setattr(Path, "write_bytes", full)
        rn_jax.save(path, model, variables, info={"other": 1})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def full(path, content):
    with path.open("wb") as file:
        file.write(content[:10])
    raise OSError(28, "full")


TAKES = r": resnet20 needs \{'params': \.\.\., 'batch_stats': \.\.\.\} and nothing else"


TINY = {"stage_sizes": (1, 3), "features": (4, 8)}


def tiny_resnet20(**fields):
    return create_model("resnet20", **{**TINY, **fields})


@pytest.fixture(scope="module")
def tiny_variables(random_variables):
    """Variables of `tiny_resnet20()`, in new dicts at each call."""
    variables = random_variables(tiny_resnet20(), (8, 8, 3))
    return lambda: jax.tree.map(np.copy, variables)


def with_leaf(change, *path):
    """Return a function that changes one leaf of variables."""

    def changed(variables):
        flat = flax.traverse_util.flatten_dict(variables)
        flat[path] = change(flat[path])
        return flax.traverse_util.unflatten_dict(flat)

    return changed


HEAD = ("params", "head", "kernel")


def donated(leaf):
    array = jnp.array(leaf)
    array.delete()
    return array


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda v: {"params": v["params"]},
            rf"lacks batch_stats/\S+ and \d+ more{TAKES}",
        ),
        (lambda v: v["params"], rf"lacks batch_stats/\S+ and \d+ more{TAKES}"),
        (lambda v: {}, rf"lacks batch_stats/\S+ and \d+ more{TAKES}"),
        (lambda v: {**v, "params": {}}, r"lacks params/head/bias and \d+ more"),
        (
            lambda v: {**v, "intermediates": {"stem": (np.ones(3),)}},
            rf"has intermediates/stem, which the network does not have{TAKES}",
        ),
        (
            lambda v: {**v, "losses": {"stem": np.ones(3)}},
            rf"has losses/stem, which the network does not have{TAKES}",
        ),
        (
            with_leaf(lambda leaf: leaf.T, *HEAD),
            r"head/kernel as float32\[10, 8\], but",
        ),
        (with_leaf(lambda leaf: leaf[0], *HEAD), r"head/kernel as float32\[10\], but"),
        (with_leaf(lambda leaf: leaf.astype(int), *HEAD), r"as int64\[8, 10\], but"),
        (with_leaf(lambda leaf: leaf.astype(object), *HEAD), "and dtype object"),
        (
            with_leaf(lambda leaf: leaf.tolist(), *HEAD),
            "kernel, which has type list",
        ),
        (with_leaf(lambda leaf: 1.5, *HEAD), "kernel, which has type float"),
        (with_leaf(lambda leaf: None, *HEAD), "kernel, which has type NoneType"),
        (with_leaf(lambda leaf: leaf.astype("S3"), *HEAD), "and dtype .S3"),
        (
            with_leaf(lambda leaf: leaf.astype("complex64"), *HEAD),
            "dtype complex64: weights are dense",
        ),
        (with_leaf(lambda leaf: leaf.astype(jnp.float8_e5m2), *HEAD), "float8_e5m2"),
        (with_leaf(donated, *HEAD), r"cannot be read \(Array has been deleted"),
        (with_leaf(lambda leaf: jax.random.key(0), *HEAD), "kernel.* cannot be read"),
        (
            lambda v: jax.eval_shape(lambda: v),
            "ShapeDtypeStruct and dtype float32",
        ),
        (lambda v: jax.tree.map(lambda a: a[None], v), r"axis of 1 devices in every"),
        (
            lambda v: jax.tree.map(lambda a: np.stack([a] * 8), v),
            r"8 dev.*unreplicate",
        ),
        (
            lambda v: jax.tree.map(lambda a: np.stack([a] * 3), rn_jax.unstack(v)),
            r"3 devices .*unreplicate",
        ),
        (
            lambda v: {"params": rn_jax.unstack(v)["params"]},
            rf"lacks batch_stats.*{TAKES}",
        ),
        (lambda v: rn_jax.unstack(v)["params"], rf"lacks batch_stats.*{TAKES}"),
        (lambda v: [v], r"must be a dict, not a list: pass \{'params'"),
        (lambda v: None, r"must be a dict, not a NoneType: pass \{'params'"),
    ],
)
def test_variables_that_could_not_be_loaded(tmp_path, tiny_variables, change, sentence):
    """They are refused before anything is written; an existing file stays intact."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(InputError, match=sentence) as error:
        rn_jax.save(path, tiny_resnet20(), change(tiny_variables()))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"features": (4, 16)}, r"as float32\[[\d, ]+\], but resnet20 with these"),
        ({"stage_sizes": (1, 4)}, r"as float32\[3, |has .*stage2/block04/"),
        ({"stage_sizes": (1, 2)}, r"as float32\[1, |lacks .*stage2/block03/"),
        ({"num_classes": 7}, r"head/bias as float32\[7\], but .* has float32\[10\]\."),
        ({"num_classes": None}, r"lacks params/head/bias and 1 more\."),
        (
            {"shortcut": "B"},
            r"has batch_stats/stage2/.*shortcut.*, which the network does",
        ),
    ],
    ids=["widths", "deeper", "shallower", "classes", "headless", "shortcut"],
)
def test_variables_of_another_network_are_refused_on_both_sides(
    tmp_path, random_variables, fields, sentence
):
    path = tmp_path / "net.safetensors"
    variables = random_variables(tiny_resnet20(**fields), (8, 8, 3))
    with pytest.raises(InputError, match=sentence):
        rn_jax.save(path, tiny_resnet20(), variables)
    assert not path.exists()
    arrays = flax.traverse_util.flatten_dict(rn_jax.unstack(variables), sep="/")
    write(path, ours(fields=TINY), arrays)
    with pytest.raises(InputError, match=sentence):
        rn_jax.load(path)


@pytest.mark.parametrize(
    "dtype, channels",
    [("float16", 4), ("bfloat16", 1), ("float32", 3), ("float64", 3), (">f4", 3)],
)
def test_round_trips_are_exact(tmp_path, random_variables, dtype, channels):
    """For every dtype and byte order, NaN, and any number of image channels."""
    model, path = tiny_resnet20(), tmp_path / "net.safetensors"
    variables = random_variables(model, (8, 8, channels), dtype)
    variables["params"]["head"]["bias"][:2] = np.nan, np.inf
    native = jax.tree.map(lambda a: a.astype(a.dtype.newbyteorder("=")), variables)
    as_of_jax = native if dtype == "float64" else jax.tree.map(jnp.asarray, native)
    for given in (variables, flax.core.freeze(variables), rn_jax.unstack(as_of_jax)):
        rn_jax.save(path, model, given)
        found = rn_jax.load(path)[1]
        jax.tree.map(assert_identical, found, native)
        arrays = jax.Array if dtype != "float64" else np.ndarray
        assert all(isinstance(leaf, arrays) for leaf in jax.tree.leaves(found))


def assert_identical(found, given):
    assert (found.dtype, found.shape) == (given.dtype, given.shape)
    assert np.asarray(found).tobytes() == given.tobytes()


class Flat(rn_jax.models.network.Network):
    """A network with a matrix as large as the images, a sown loss and a state."""

    @nn.compact
    def __call__(self, images, *, train, gates=None, paths=None):
        x = nn.Dense(4, name="fc")(images.reshape(len(images), -1))
        self.variable("ema", "mean", jnp.zeros, (4,))
        self.sow("losses", "size", (x**2).sum())
        return self.classify(x)


def test_shapes_that_follow_the_images_are_free(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "flat", rn_jax.ModelEntry(Flat, {}, image_size=8))
    model, path = create_model("flat"), tmp_path / "net.safetensors"
    for shape in ((1, 4, 6, 1), (1, 8, 8, 3)):
        images = jnp.ones(shape)
        variables = dict(model.init(jax.random.key(0), images, train=False))
        with pytest.raises(
            InputError, match=r"needs {'params': ..., 'ema': ...} and n"
        ):
            rn_jax.save(path, model, variables)
        del variables["losses"]  # which is sown anew at every call
        rn_jax.save(path, model, variables)
        found = rn_jax.load(path)[1]
        jax.tree.map(np.testing.assert_array_equal, found, variables)
        model.apply(found, images, train=False)
    variables["params"]["fc"]["kernel"] = np.ones((192, 5), "float32")
    with pytest.raises(InputError, match=r"fc/kernel as float32\[192, 5\], but flat"):
        rn_jax.save(path, model, variables)


def test_what_is_no_network_or_no_info(tmp_path, tiny_variables):
    model, path = tiny_resnet20(), tmp_path / "net.safetensors"
    variables = tiny_variables()
    with pytest.raises(InputError, match=r"must be a Flax module, .* not a dict"):
        rn_jax.save(path, variables, model)
    with pytest.raises(InputError, match="No name of the table makes this Dense"):
        rn_jax.save(path, nn.Dense(3), variables)
    circular = {}
    circular["info"] = circular
    for info in ([("a", 1)], "text", {"a": np.ones(2)}, circular, {(1, 2): 3}):
        with pytest.raises(InputError, match="info must be"):
            rn_jax.save(path, model, variables, info=info)
    assert os.listdir(tmp_path) == []


def test_a_field_may_be_numpys_number_or_flaxs_relu(tmp_path, random_variables):
    model = tiny_resnet20(num_classes=np.int64(7), activation=nn.relu)
    same = tiny_resnet20(num_classes=7)
    assert rn_jax.weights.describe(model) == rn_jax.weights.describe(same)
    rn_jax.save(tmp_path / "a.safetensors", model, random_variables(model, (8, 8, 3)))
    assert rn_jax.load(tmp_path / "a.safetensors")[0] == same
    with pytest.raises(InputError, match="activation is"):
        rn_jax.weights.describe(tiny_resnet20(activation=nn.gelu))


class Name(os.PathLike):
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


def test_paths(tmp_path, monkeypatch, tiny_variables):
    monkeypatch.setenv("HOME", str(tmp_path))
    model, variables = tiny_resnet20(), tiny_variables()
    for path in ("~/a.safetensors", Path("~/b.safetensors"), Name("~/c.safetensors")):
        rn_jax.save(path, model, variables)
        assert rn_jax.load(path)[0] == model and rn_jax.weights.is_saved(path)
        assert rn_jax.read_info(path)["model"] == "resnet20"
    assert sorted(os.listdir(tmp_path)) == [f"{c}.safetensors" for c in "abc"]
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").touch()
    for path, sentence in (
        (tmp_path / "folder.safetensors", "cannot be written to .*irectory"),
        (tmp_path, r"Name the file .*\.safetensors"),
        (tmp_path / "file" / "a.safetensors", "There is no folder .*file: make it"),
        (tmp_path / ("a" * 300 + ".safetensors"), "cannot be written to .*too long"),
        (str(tmp_path / "a\0.safetensors"), "cannot be written to .*null"),
    ):
        with pytest.raises(InputError, match=sentence):
            rn_jax.save(path, model, variables)
    names = {"a.safetensors", "b.safetensors", "c.safetensors"}
    assert set(os.listdir(tmp_path)) == names | {"folder.safetensors", "file"}
    assert os.listdir(tmp_path / "folder.safetensors") == []


def write(path, metadata, arrays=None):
    arrays = {"params/head/bias": np.zeros(3, "float32")} if arrays is None else arrays
    safetensors.numpy.save_file(arrays, path, metadata)
    return path


def ours(**changes):
    found = {"format": 1, "model": "resnet20", "fields": {}, "info": {}, **changes}
    return {"rn_jax": json.dumps(found)}


@pytest.mark.parametrize(
    "metadata, match",
    [
        (None, "was not written by rn_jax.save; use interop.from_torch"),
        ({"rn_jax": "[1]"}, "was not written by rn_jax.save"),
        ({"rn_jax": "{"}, "is not a file of safetensors"),
        (ours(format=2), "has format 2; this version reads 1"),
        (ours(fields=3), "is damaged"),
        (ours(model=None), "is damaged"),
        (ours(model="resnet21"), "Unknown model 'resnet21'"),
        (
            ours(fields={"shortcat": "B"}),
            "Unknown field of resnet20 'shortcat'; similar: shortcut",
        ),
        (ours(fields={"stage_sizes": [10**12]}), r"claims 1,000,000,000,000 blocks"),
        (ours(fields={"stage_sizes": [10**12, -(10**12)]}), r"claims 1,000,000,000"),
        (ours(fields={"stage_sizes": "many"}), r"was not written by rn_jax\.save"),
        (ours(fields={"axis_name": "x"}), "is damaged"),
        (ours(), r"lacks batch_stats/stage1/block01/bn1/mean and 95 more"),
        (ours(fields={"stochastic_depth": {"last_survival": 3}}), r"in \(0, 1\]"),
    ],
)
def test_other_files_are_refused(tmp_path, metadata, match):
    with pytest.raises(InputError, match=match):
        rn_jax.load(write(tmp_path / "x.safetensors", metadata))


def test_blocks_that_are_not_there(tmp_path):
    arrays = {f"params/stage1/block{i:02d}/a": np.zeros(1) for i in range(1, 20)}
    path = write(tmp_path / "x.safetensors", ours(), arrays)
    with pytest.raises(InputError, match=r"lacks batch_stats/stage1/.* and \d+ more"):
        rn_jax.load(path)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    model = create_model("resnet20")
    with pytest.raises(InputError, match=r"Name the file net\.safetensors"):
        rn_jax.save(tmp_path / "net.npz", model, {})
    with pytest.raises(InputError, match=r"There is no folder .*none: make it"):
        one = {"params": {"stem_conv": {"kernel": np.zeros(1)}}}
        rn_jax.save(tmp_path / "none" / "net.safetensors", model, one)
    for name in ("none.safetensors", "none.pth"):
        with pytest.raises(InputError, match=f"There is no file .*{name}"):
            rn_jax.load(tmp_path / name)
    for name in ("timm/resnet50.a1_in1k", "hf-hub:owner/network", "resnet50.tv_in1k"):
        with pytest.raises(InputError, match=f"{name}.*interop.load_public loads"):
            rn_jax.load(name)
    with pytest.raises(InputError, match=r"is a folder: .*export --workdir=.*runs/a"):
        (tmp_path / "runs" / "a=0.5").mkdir(parents=True)
        rn_jax.load(tmp_path / "runs" / "a=0.5")
    (tmp_path / "resnet20_digits").mkdir()
    monkeypatch.chdir(tmp_path)
    rn_jax.load("resnet20_digits")  # all the same
    with pytest.raises(InputError, match="Unknown trained network 'resnet21_digits'"):
        rn_jax.load("resnet21_digits")


def test_without_safetensors_a_sentence_says_what_is_needed():
    code = """
import sys
sys.modules["safetensors"] = None
import rn_jax
try:
    rn_jax.load("resnet20_digits")
except rn_jax.InputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip install safetensors" in done.stdout
