# SPDX-License-Identifier: Apache-2.0
"""Our networks against torchvision's and akamaster's, with the same weights."""

import argparse
import functools
import os
import re
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rn_jax
from rn_jax import InputError, create_model, data
from rn_jax.interop import from_torch, read_weights, to_torch, torch_fields
from rn_jax.interop.public import PUBLIC
from rn_jax.models import MODELS

torch = pytest.importorskip("torch", reason="PyTorch is an optional peer")


# Compared in another size; that their weights fit is shown for these, from which the
# others differ in depth alone.
OTHERS = (
    *("resnet34", "resnet50", "resnet152", "wide_resnet50_2", "resnext50_32x4d"),
    *("resnext101_64x4d", "vgg16", "vgg16_bn", "densenet161", "densenet201"),
)


def randomised(model, seed=0):
    """Set all weights to different values that keep activations near 1."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim > 1:
                new = rng.normal(size=value.shape) / np.sqrt(value[0].numel())
            elif name.endswith("var") or name.endswith("weight"):
                new = rng.uniform(0.5, 1.5, value.shape)
            elif value.ndim:
                new = 0.2 * rng.normal(size=value.shape)
            else:
                continue
            value.copy_(torch.from_numpy(new))
    return model


def relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_blocks_are_torchvisions(name, torchvision):
    """A few of them."""
    module, few = torchvision.models.resnet, (2, 1, 1, 1)
    block, settings = {
        "resnet18": (module.BasicBlock, {}),
        "resnet50": (module.Bottleneck, {}),
        "resnext50_32x4d": (module.Bottleneck, {"groups": 32, "width_per_group": 4}),
    }[name]
    peer = module.ResNet(block, few, num_classes=7, **settings)
    compare(name, peer, stage_sizes=few)


@pytest.mark.slow
def test_resnet18_is_torchvisions(torchvision):
    compare("resnet18", torchvision.models.resnet18(num_classes=7))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_other_depths_fit(name, torchvision):
    with torch.device("meta"):  # the values that a new network has take long to draw
        peer = torchvision.models.get_model(name, num_classes=7)
    peer = peer.to_empty(device="cpu")
    for tensor in peer.state_dict().values():
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    variables = from_torch(name, peer.state_dict())
    count = sum(p.numel() for p in peer.parameters())
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert_back_again(create_model(name, num_classes=7), variables, peer)


def assert_back_again(model, variables, peer):
    """Every entry of the peer's state_dict, by name, shape, dtype and value."""
    back, theirs = to_torch(model, variables), peer.state_dict()
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[key], value.numpy(), key, strict=True)
    peer.load_state_dict({key: torch.from_numpy(back[key]) for key in back})


# Networks with public weights, which docs/weights.md lists as compared.
OF_TIMM = sorted({row.network for n, row in PUBLIC.items() if "IMAGENET1K" not in n})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "resnet18" else pytest.mark.slow)
        for name in OF_TIMM
    ],
)
def test_networks_are_timms(name, torchvision):
    timm = pytest.importorskip("timm", reason="an optional peer")
    peer = randomised(timm.create_model(name, num_classes=7)).eval()
    variables = from_torch(name, peer.state_dict())
    assert_same_logits(create_model(name, num_classes=7), variables, peer, [(64, 64)])


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [False, True])
def test_preactivation_units_are_timms(bottleneck, torchvision):
    pytest.importorskip("timm", reason="an optional peer")
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models.resnetv2 import ResNetV2

    sizes, features = (2, 2, 1, 1), (32, 64, 64, 128)
    peer = ResNetV2(
        sizes,
        features,
        num_classes=7,
        stem_chs=16,
        basic=not bottleneck,
        bottle_ratio=0.25 if bottleneck else 1.0,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
    )
    name = "resnetv2_50" if bottleneck else "resnetv2_18"
    compare(name, peer, stage_sizes=sizes, features=features, stem_features=16)


@pytest.mark.slow
def test_dense_layers_are_torchvisions(torchvision):
    sizes = {"growth_rate": 8, "num_classes": 7}
    peer = torchvision.models.DenseNet(
        block_config=(2, 1, 1, 2), num_init_features=16, **sizes
    )
    fields = {"stage_sizes": (2, 1, 1, 2), "growth_rate": 8, "stem_features": 16}
    compare("densenet121", peer, **fields)

    # torchvision's files have names of an older version, which it changes on loading.
    weights = peer.state_dict()
    pattern = r"(denselayer\d+\.(?:norm|conv))(\d)"
    old = {re.sub(pattern, r"\1.\2", key): weights[key] for key in weights}
    assert set(old) != set(weights)
    one, two = (from_torch("densenet121", w, **fields) for w in (weights, old))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_is_torchvisions(batch_norm, torchvision):
    nn, module = torch.nn, torchvision.models.vgg
    parts = module.make_layers([8, "M", 16, 16, "M", 16, 16, "M"], batch_norm)
    peer = module.VGG(parts, num_classes=7, init_weights=False)
    peer.classifier = nn.Sequential(
        *(nn.Linear(16 * 49, 32), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(32, 32), nn.ReLU(), nn.Dropout()),
        nn.Linear(32, 7),
    )
    fields = {"stage_sizes": (1, 2, 2), "features": (8, 16, 16), "hidden": (32, 32)}
    name = "vgg11_bn" if batch_norm else "vgg11"
    compare(name, peer, dropout=0.0, **fields)


@pytest.mark.parametrize("name", ["googlenet", "alexnet"])
def test_logits_are_torchvisions(name, torchvision):
    """Float32, at test; the rest of `compare` is in `make test-all`."""
    settings = {"init_weights": False} if name == "googlenet" else {}
    peer = torchvision.models.get_model(name, num_classes=7, **settings)
    peer = randomised(peer).eval()
    model, variables = (
        create_model(name, num_classes=7),
        from_torch(name, peer.state_dict()),
    )
    assert_same_logits(model, variables, peer, [(127, 95)])


def assert_same_logits(model, variables, peer, sizes):
    """In float32, at test, for images of every size."""
    run = jax.jit(lambda v, x: model.apply(v, x, train=False))
    for size in sizes:
        images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
        with torch.no_grad():
            theirs = peer(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
        assert relative_error(run(variables, images), theirs) < 1e-4, size


# Odd and oblong, and with odd maps at every depth of the networks.
SIZES = [(75, 101), (72, 72), (63, 97), (119, 65), (90, 67)]
TORCHVISIONS = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("vgg11", "vgg13", "vgg16", "vgg19"),
    *("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("googlenet", "alexnet"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_whole_networks_are_torchvisions_at_any_size(name, torchvision):
    with torch.device("meta"):  # the values that a new network has take long to draw
        peer = torchvision.models.get_model(name, num_classes=7)
    peer = randomised(peer.to_empty(device="cpu")).eval()
    model, variables = (
        create_model(name, num_classes=7),
        from_torch(name, peer.state_dict()),
    )
    assert_same_logits(model, variables, peer, SIZES)


def test_all_names_of_torchvision_are_compared(torchvision):
    assert set(TORCHVISIONS) == set(torchvision.models.list_models()) & set(MODELS)


@pytest.mark.parametrize("kind", ["densenet121", "resnet18"])
def test_small_networks_are_torchvisions_at_any_size(kind, torchvision):
    """As DenseNet's transitions and a stem pool what is odd at every depth."""
    sizes, models = (1, 1, 1, 1), torchvision.models
    if kind == "resnet18":
        peer = models.ResNet(models.resnet.BasicBlock, sizes, num_classes=7)
        fields = {}
    else:
        fields = {"growth_rate": 8, "num_classes": 7}
        peer = models.DenseNet(block_config=sizes, num_init_features=16, **fields)
        fields["stem_features"] = 16
    fields |= {"stage_sizes": sizes, "num_classes": 7}
    peer = randomised(peer).eval()
    variables = from_torch(kind, peer.state_dict(), **fields)
    assert_same_logits(create_model(kind, **fields), variables, peer, SIZES[:2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "alexnet"])
def test_these_are_torchvisions(name, torchvision):
    settings = {"init_weights": False} if name == "googlenet" else {}
    peer = torchvision.models.get_model(name, num_classes=7, **settings)
    more = {"aux_dropout": 0.0} if name == "googlenet" else {}
    compare(name, peer, dropout=0.0, **more)


def compare(name, peer, **fields):
    """Logits and gradients in float64, at test and in training; logits in float32.

    Those of auxiliary heads too. Dropout is off on both sides.
    """
    peer = randomised(peer.double())
    for module in peer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    size = 127 if name == "alexnet" else 64  # 3x3 at the end, or 2x2
    number = 2 if name == "alexnet" else 8  # which has no BatchNorm
    images = np.random.default_rng(1).normal(size=(number, size, size, 3))
    weights = np.random.default_rng(2).normal(size=(number, 7))
    at_test = None

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        variables = from_torch(name, peer.state_dict(), **fields)
        model = create_model(name, num_classes=7, **fields)
        assert_back_again(model, variables, peer)

        def loss(params, images, train):
            all_variables = {**variables, "params": params}
            mutable = ["batch_stats", "aux_logits"] if train else []
            logits, updates = model.apply(
                all_variables, images, train=train, mutable=mutable
            )
            aux = updates.get("aux_logits", {})
            aux = [aux[name]["logits"][0] for name in sorted(aux, reverse=True)]
            outputs = [logits, *aux]
            return sum((y * weights).sum() for y in outputs), outputs

        run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
        for train in (False, True):
            peer.train(train)
            peer.zero_grad(set_to_none=True)
            x = torch.from_numpy(images.transpose(0, 3, 1, 2)).requires_grad_()
            theirs = peer(x)  # GoogLeNet's are logits, of aux2 and of aux1
            theirs = [theirs] if isinstance(theirs, torch.Tensor) else list(theirs)
            sum((y * torch.from_numpy(weights)).sum() for y in theirs).backward()
            (_, outputs), (by_params, by_images) = run(
                variables["params"], images, train
            )
            theirs = [y.detach().numpy() for y in theirs]
            for ours, their in zip(outputs, theirs, strict=True):
                assert relative_error(ours, their) < 1e-8
            at_test = theirs[0] if not train else at_test
            theirs = x.grad.numpy().transpose(0, 2, 3, 1)
            assert relative_error(by_images, theirs) < 1e-8

            gradients = {  # without heads at test
                key: torch.zeros_like(p) if p.grad is None else p.grad
                for key, p in peer.named_parameters()
            }
            statistics = {
                key: value
                for key, value in peer.state_dict().items()
                if "running" in key
            }
            theirs = from_torch(name, gradients | statistics, **fields)["params"]
            largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
            errors = jax.tree.map(lambda a, b: np.abs(a - b).max(), by_params, theirs)
            assert max(jax.tree.leaves(errors)) < 1e-8 * largest

    single = jax.tree.map(lambda a: a.astype("float32"), variables)
    ours = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(
        single, images.astype("float32")
    )
    assert relative_error(ours, at_test) < 1e-4


# --- akamaster's trained networks on the real test set --------------------------------


class AkamasterBlock(torch.nn.Module):
    """The block of github.com/akamaster/pytorch_resnet_cifar10, by its description."""

    def __init__(self, channels, features, stride):
        super().__init__()
        nn = torch.nn
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.stride, self.extra = stride, features - channels

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.extra:
            x = x[:, :, :: self.stride, :: self.stride]
            half = self.extra // 2
            x = torch.nn.functional.pad(x, (0, 0, 0, 0, half, half))
        return (x + y).relu()


class Akamaster(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        channels = 16
        for stage, features in enumerate((16, 32, 64), 1):
            blocks = []
            for i in range(n):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(AkamasterBlock(channels, features, stride))
                channels = features
            setattr(self, f"layer{stage}", torch.nn.Sequential(*blocks))
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


@pytest.fixture(scope="module")
def test_set():
    """CIFAR-10's test set as akamaster normalises it, and its labels."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder:
        pytest.skip("TFDS_DATA_DIR is not set")
    examples = data.load("cifar10", data_dir=folder).test
    images = examples.images.astype("float32") / 255
    images -= np.array([0.485, 0.456, 0.406], "float32")
    return images / np.array([0.229, 0.224, 0.225], "float32"), examples.labels


@pytest.mark.parametrize(
    "depth, error, number",
    [
        pytest.param(20, 8.27, 10_000, marks=pytest.mark.slow),
        pytest.param(32, 7.37, 10_000, marks=pytest.mark.slow),
        (20, 8.27, 1_000),
    ],
)
def test_akamasters_trained_networks(depth, error, number, test_set):
    folder = os.environ.get("RN_JAX_TEST_WEIGHTS")
    if not folder:
        pytest.skip("RN_JAX_TEST_WEIGHTS is not set")
    weights = read_weights(Path(folder) / f"akamaster_resnet{depth}.th")
    name, (images, labels) = f"resnet{depth}", test_set
    assert len(labels) == 10_000
    images, labels = images[:number], labels[:number]
    variables = from_torch(name, weights)
    assert torch_fields(name, weights) == {"shortcut": "A_centered"}
    model = create_model(name, shortcut="A_centered")
    run = jax.jit(lambda x: model.apply(variables, x, train=False).argmax(-1))
    ours = np.concatenate([run(part) for part in np.split(images, number // 500)])
    peer = Akamaster((depth - 2) // 6).eval()
    peer.load_state_dict({k.removeprefix("module."): v for k, v in weights.items()})
    with torch.no_grad():
        theirs = np.concatenate(
            [
                peer(torch.from_numpy(part.transpose(0, 3, 1, 2))).argmax(1).numpy()
                for part in np.split(images, number // 500)
            ]
        )
    assert (ours == theirs).sum() >= number - 2
    if number == 10_000:
        assert abs((ours != labels).sum() - error * 100) <= 2
    else:  # within three deviations of a part
        assert abs(100 * (ours != labels).mean() - error) < 3


def test_fields_of_imported_networks():
    assert torch_fields("resnet50", {}) == {}
    assert torch_fields("googlenet", {"fc.weight": 0}) == {"aux_heads": False}
    assert torch_fields("googlenet", {"aux1.fc1.weight": 0}) == {"aux_heads": True}
    with pytest.raises(InputError, match="Unknown model 'resnet33'"):
        torch_fields("resnet33", {})


# --- Bad input ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet20_weights():
    return Akamaster(3).state_dict()


def test_round_trip_of_names_and_shapes(resnet20_weights):
    variables = from_torch("resnet20", resnet20_weights)
    model = create_model("resnet20", shortcut="A_centered")
    expected = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    same = jax.tree.map(lambda a, b: a.shape == b.shape, variables, expected)
    assert all(jax.tree.leaves(same))
    second = rn_jax.unstack(variables)["params"]["stage2"]["block02"]["conv1"]["kernel"]
    theirs = resnet20_weights["layer2.1.conv1.weight"].numpy()
    np.testing.assert_array_equal(second, theirs.transpose(2, 3, 1, 0))
    stem = variables["params"]["stem_conv"]["kernel"]
    assert not np.shares_memory(stem, resnet20_weights["conv1.weight"].numpy())
    peer = Akamaster(3)
    peer.load_state_dict(resnet20_weights)
    for layout in (variables, rn_jax.unstack(variables)):
        assert_back_again(model, layout, peer)


NOT_DENSE = "dtype torch.float32 and cannot be read .*: weights are dense arrays of b"


@pytest.mark.parametrize(
    "change, match",
    [
        ({"linear.weight": None}, "no classifier named fc or linear, but linear.bias"),
        (
            {"linear.weight": np.ones((7, 64))},
            r"linear.bias, \(10,\) instead of \(7,\)",
        ),
        ({"fc.weight": np.ones((7, 64))}, r"missing fc.bias; left over linear.bias"),
        (
            {"conv1.weight": np.ones((16, 3, 3, 3), "int8")},
            "conv1.weight has type ndarray and dtype int8: we",
        ),
        ({"epoch": 3}, "epoch has type int: weights are"),
        ({"optimizer": {}}, "optimizer has type dict: weights are"),
        ({3: np.ones(2)}, "Weights are tensors by name, .* not a dict"),
        (
            {"bn1.bias": torch.ones(16).to(torch.float8_e5m2)},
            "bn1.bias has type Tensor and dtype torch.float8_e5m2 and cannot be read",
        ),
        (
            {"bn1.bias": torch.ones(16, device="meta")},
            NOT_DENSE,
        ),
        (
            {"bn1.bias": torch.ones(16).to_sparse()},
            NOT_DENSE,
        ),
        (
            {"layer3.2.bn2.bias": None},
            r"not fit resnet20: missing layer3.2.bn2.bias\.$",
        ),
        ({"more": np.ones(2)}, r"not fit resnet20: left over more\.$"),
        (
            {"layer3.2.bn2.bias": None, **{f"a{i}": np.ones(2) for i in range(5)}},
            r"missing layer3.2.bn2.bias; left over a0, a1, a2 and 2 more\.$",
        ),
        (
            {"conv1.weight": np.ones((8, 3, 3, 3)), "more": np.ones(2)},
            r"left over more; of another shape in our layout conv1.weight, "
            r"\(3, 3, 3, 8\) instead of \(3, 3, 3, 16\)\.$",
        ),
    ],
)
def test_weights_that_do_not_fit(resnet20_weights, change, match):
    weights = dict(resnet20_weights) | change
    weights = {key: value for key, value in weights.items() if value is not None}
    with pytest.raises(InputError, match=match):
        from_torch("resnet20", weights)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("resnet20", {}),  # whose shortcut is A
        ("resnet50", {"block_kwargs": {"stride_on": "1x1"}}),
        ("resnet34", {"shortcut": "C"}),
        ("resnetv2_50", {"block_kwargs": {"stride_on": "1x1"}}),
        ("googlenet", {"large_kernel": 5}),
    ],
)
def test_networks_that_compute_something_else_there(name, fields):
    with pytest.raises(InputError, match="computes something else"):
        to_torch(create_model(name, **fields), {"params": {}})


@pytest.mark.parametrize("scaling", ["test", "training", "none"])
def test_survival_probabilities_are_not_dropped_in_silence(scaling):
    """PyTorch's network would add every branch with a factor of 1."""
    depth = rn_jax.StochasticDepth(last_survival=0.5, scaling=scaling)
    model = create_model("resnet18", stochastic_depth=depth)
    variables = {"params": {"head": {"bias": np.arange(3.0)}}}
    if scaling == "test":
        with pytest.raises(InputError, match="multiplies each branch"):
            to_torch(model, variables)
        model = model.clone(stochastic_depth=None)
    weights = to_torch(model, variables)
    np.testing.assert_array_equal(weights["fc.bias"], [0, 1, 2])


def test_names_without_a_counterpart():
    for name in ("wrn16_8", "preact_resnet110", "preact_resnet152"):
        with pytest.raises(InputError, match=f"No supported PyTorch .*{name}"):
            from_torch(name, {"fc.weight": np.ones((3, 2))})


def test_what_is_no_state_dict():
    for content in (Akamaster(3), [("w", 1)], None, torch.ones(2), {1: torch.ones(2)}):
        with pytest.raises(
            InputError, match=r"as model.state_dict\(\) returns them, not"
        ):
            from_torch("resnet20", content)


# --- Features -------------------------------------------------------------------------


@functools.cache
def peer_of_features(name):
    """A small network of timm's, our fields, and our names of its features."""
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models import densenet, resnet, resnetv2, vgg

    stages = ["stage1", "stage2", "stage3", "stage4"]
    sizes, widths = (2, 1, 1, 1), (8, 16, 16, 32)
    fields = {"stage_sizes": sizes, "features": widths}
    if name == "resnet18":
        peer = resnet.ResNet(resnet.BasicBlock, sizes, channels=widths, num_classes=7)
        return peer, fields | {"stem_features": 64}, ["stem", *stages]
    if name == "resnetv2_18":
        layers = {"conv_layer": create_conv2d, "norm_layer": BatchNormAct2d}
        settings = {"basic": True, "bottle_ratio": 1.0, "stem_chs": 8, **layers}
        peer = resnetv2.ResNetV2(sizes, widths, num_classes=7, **settings)
        return peer, fields | {"stem_features": 8}, ["stem", *stages]
    if name == "densenet121":
        peer = densenet.DenseNet(8, sizes, num_classes=7)
        fields = {"stage_sizes": sizes, "growth_rate": 8, "stem_features": 16}
        return peer, fields, ["stem", *stages[:3], "final"]
    parts = [8, "M", 16, 16, "M", 16, 16, "M"]
    layers = {"norm_layer": torch.nn.BatchNorm2d}
    peer = vgg.VGG(parts, num_classes=7, mlp_ratio=1 / 128, **layers)
    fields = {"stage_sizes": (1, 2, 2), "features": (8, 16, 16), "hidden": (32, 4096)}
    return peer, fields, ["stage1/layer01", "stage2/layer02", "stage3/layer02", "final"]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnetv2_18", "densenet121", "vgg11_bn")
        ),
    ],
)
def test_features_are_timms(name, torchvision):
    """Those of `features_only`: maps, strides and channels."""
    pytest.importorskip("timm", reason="an optional peer")
    peer, fields, names = peer_of_features(name)
    peer = randomised(peer).eval()
    model = create_model(name, num_classes=7, **fields)
    variables = from_torch(name, peer.state_dict(), **fields)
    images = np.random.default_rng(1).normal(size=(2, 45, 64, 3)).astype("float32")
    with torch.no_grad():
        theirs = peer.forward_intermediates(
            torch.from_numpy(images.transpose(0, 3, 1, 2)), intermediates_only=True
        )
    run = jax.jit(functools.partial(rn_jax.features, model, names=names))
    ours, info = run(variables, images), rn_jax.feature_info(model)
    assert len(theirs) == len(names)
    for name, map_, about in zip(names, theirs, peer.feature_info, strict=True):
        map_ = map_.numpy().transpose(0, 2, 3, 1)
        assert ours[name].shape == map_.shape
        assert relative_error(ours[name], map_) < 1e-4, name
        expected = rn_jax.FeatureInfo(about["reduction"], about["num_chs"])
        assert info[name] == expected


NODES = {
    "alexnet": {
        f"conv{i}": f"features.{n}" for i, n in enumerate((1, 4, 7, 9, 11), start=1)
    },
    "googlenet": {
        **{name: name for name in ("conv1", "conv2", "conv3")},
        **{f"inception{m}": f"inception{m}" for m in ("3a", "3b", "4a", "4e", "5b")},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NODES)
def test_features_are_torchvisions(name, torchvision):
    from torchvision.models.feature_extraction import create_feature_extractor

    settings = {"init_weights": False} if name == "googlenet" else {}
    peer = torchvision.models.get_model(name, num_classes=7, **settings)
    peer = randomised(peer).eval()
    variables = from_torch(name, peer.state_dict())
    nodes = {theirs: ours for ours, theirs in NODES[name].items()}
    images = np.random.default_rng(1).normal(size=(1, 95, 127, 3)).astype("float32")
    with torch.no_grad():
        extract = create_feature_extractor(peer, nodes, suppress_diff_warning=True)
        theirs = extract(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    model = create_model(name, num_classes=7)
    ours = rn_jax.features(model, variables, images, NODES[name])
    for name, map_ in theirs.items():
        map_ = map_.numpy().transpose(0, 2, 3, 1)
        assert ours[name].shape == map_.shape
        assert relative_error(ours[name], map_) < 1e-4, name


# --- Channels, headless weights, half precision, prefixes and checkpoints -------------

TINY = {"stage_sizes": (1, 1), "features": (4, 8)}
# Small networks of every family, which to_torch gives the names of its PyTorch project.
FAMILIES = {
    "resnet18": TINY | {"stem_features": 4},
    "resnext50_32x4d": {"stage_sizes": (1, 1), "features": (256, 512)},
    "resnetv2_18": TINY | {"stem_features": 4},
    "resnet20": TINY | {"shortcut": "A_centered"},
    "densenet121": {"stage_sizes": (1, 2), "growth_rate": 4, "stem_features": 8},
    "vgg11_bn": TINY | {"hidden": (6, 5)},
    "alexnet": {"stem": "small"},
    "googlenet": {},
}
EVERY_FAMILY = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "googlenet" else ())
        for name in FAMILIES
    ],
)


def assert_equal(ours, theirs):
    jax.tree.map(
        functools.partial(np.testing.assert_array_equal, strict=True), ours, theirs
    )


def half(weights, dtype):
    """The same in half precision, as tensors of PyTorch."""
    return {key: torch.from_numpy(value).to(dtype) for key, value in weights.items()}


@EVERY_FAMILY
def test_grey_half_precision_and_wrapped(name, random_variables, caplog):
    """Weights of grey images, in bfloat16, of a wrapped network in a checkpoint."""
    fields = FAMILIES[name]
    model = create_model(name, num_classes=7, **fields)
    variables = random_variables(model, (64, 64, 1), "bfloat16")
    weights = to_torch(model, variables)  # float32, of the same values
    wrapped = half(weights, torch.bfloat16) | {"conv1.total_ops": torch.zeros(1)}
    wrapped = {f"module._orig_mod.{key}": value for key, value in wrapped.items()}
    wrapped["n_averaged"] = torch.tensor(3)
    content = {"epoch": 3, "model": wrapped, "optimizer": {}, "args": None}
    found = from_torch(name, content, **fields)
    assert_equal(found, jax.tree.map(lambda a: a.astype("float32"), variables))
    assert caplog.messages == [
        "Removed the prefix 'module._orig_mod.' from all names of the weights."
    ]


@EVERY_FAMILY
def test_headless_weights(name, random_variables):
    """They belong to a network without classes, for any number of channels."""
    fields = FAMILIES[name]
    model = create_model(name, num_classes=7, **fields)
    variables = random_variables(model, (64, 64, 4), "float16")
    weights = half(to_torch(model, variables), torch.float16)
    heads = ("fc.", "linear.", "head.", "classifier.6.", "classifier.weight")
    heads += ("classifier.bias",)
    headless = {k: v for k, v in weights.items() if not k.startswith(heads)}
    assert len(weights) - len(headless) == 2
    found = from_torch(name, headless, **fields)
    expected = jax.tree.map(lambda a: a.astype("float32"), variables)
    del expected["params"]["head"]
    aux = [key for key in expected["params"] if key.startswith("aux")]
    for tree in expected.values():
        for key in aux:
            tree.pop(key, None)
    assert_equal(found, expected)

    # And no fully connected layers at all, as `model.features` has none.
    before = "features." if any(k.startswith("features.") for k in weights) else ""
    features = {
        key.removeprefix(before): value
        for key, value in headless.items()
        if not key.startswith("classifier.")
    }
    found = from_torch(name, features, **fields)
    model = create_model(name, num_classes=None, **fields)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False),
        jnp.ones((1, 64, 64, 4)),
    )
    assert jax.tree.structure(found) == jax.tree.structure(dict(shapes))
    if name == "vgg11_bn":  # timm's names where only features are asked for
        features = {f"features_{key}": value for key, value in features.items()}
        assert_equal(from_torch(name, features, **fields), found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vgg11_bn", "resnetv2_18"])
@pytest.mark.parametrize("kind", [{"num_classes": 0}, {"features_only": True}, {}])
def test_timms_other_weights(name, kind, torchvision):
    """Of grey images, with and without a classifier."""
    timm = pytest.importorskip("timm", reason="an optional peer")
    if name == "resnetv2_18" and "features_only" in kind:
        pytest.skip("timm leaves out the last BatchNorm, which is no part of a stage")
    weights = timm.create_model(name, in_chans=1, **kind).state_dict()
    found = from_torch(name, weights)
    assert ("head" in found["params"]) == (kind == {})
    stem = found["params"].get("stem_conv", found["params"].get("stage1"))
    stem = stem["layer01"]["conv"] if "layer01" in stem else stem
    assert stem["kernel"].shape[2] == 1
    count = sum(w.numel() for k, w in weights.items() if not k.endswith("tracked"))
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) == count


def test_logits_of_a_grey_network_in_bfloat16():
    peer = Akamaster(1)
    peer.conv1 = torch.nn.Conv2d(1, 16, 3, 1, 1, bias=False)
    peer = randomised(peer).to(torch.bfloat16)
    variables = from_torch("resnet20", peer.state_dict(), stage_sizes=(1, 1, 1))
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype("float32")
    theirs = peer.float().eval()(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    model = create_model("resnet20", stage_sizes=(1, 1, 1), shortcut="A_centered")
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert relative_error(ours, theirs.detach().numpy()) < 1e-5


@pytest.fixture(scope="module")
def tiny(random_variables):
    """The tiny ResNet, its variables and its weights as arrays."""
    model = create_model("resnet20", **FAMILIES["resnet20"])
    variables = random_variables(model, (8, 8, 3))
    return model, variables, to_torch(model, variables)


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "_orig_mod.", "model.", "backbone.", "encoder."),
        *("module._orig_mod.", "model.backbone.", "module.module.encoder."),
    ],
)
def test_prefixes(tiny, prefix, caplog):
    """A prefix is removed if all names have it, with a warning."""
    weights = {f"{prefix}{key}": value for key, value in tiny[2].items()}
    assert_equal(from_torch("resnet20", weights, **FAMILIES["resnet20"]), tiny[1])
    told = [f"Removed the prefix {prefix!r} from all names of the weights."]
    assert caplog.messages == (told if prefix else [])
    if prefix:  # not where one name has it not
        weights["bn1.bias"] = weights.pop(f"{prefix}bn1.bias")
        with pytest.raises(InputError, match=rf"missing .*; left over .*{prefix}"):
            from_torch("resnet20", weights, **FAMILIES["resnet20"])


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
def test_files_of_every_precision(tmp_path, tiny, dtype):
    """The same values from memory and from both kinds of file."""
    tensors = half(tiny[2], dtype)
    torch.save(tensors, tmp_path / "a.pth")
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(tensors, tmp_path / "a.safetensors")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = {key: value.to(wide).numpy() for key, value in tensors.items()}
    for weights in (
        tensors,
        read_weights(tmp_path / "a.pth"),
        read_weights(tmp_path / "a.safetensors"),
    ):
        found = from_torch("resnet20", weights, **FAMILIES["resnet20"])
        again = to_torch(tiny[0], found)
        again = {k: v for k, v in again.items() if not k.endswith("tracked")}
        for key, value in again.items():
            np.testing.assert_array_equal(value, expected[key], key, strict=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", ">f4", "float64"])
def test_pytorch_takes_what_to_torch_gives(tiny, dtype):
    """Contiguous, writable, of a dtype and a byte order of its own, scalars too."""
    model, variables, _ = tiny
    given = jax.tree.map(lambda a: a.astype(dtype)[..., ::-1], variables)
    if dtype != "float64":
        given = flax.core.freeze(given)
    wanted = {"bfloat16": torch.float32, "float16": torch.float16}
    wanted |= {"float64": torch.float64}
    for key, value in to_torch(model, given).items():
        assert value.flags.c_contiguous and value.flags.writeable
        tensor = torch.from_numpy(value)
        tracked = key.endswith("num_batches_tracked")
        assert tensor.dtype == (
            torch.int64 if tracked else wanted.get(dtype, torch.float32)
        )
    value = to_torch(model, given)["linear.bias"]
    np.testing.assert_array_equal(
        value, given["params"]["head"]["bias"].astype(value.dtype)
    )


CHECKPOINTS = {
    "state_dict": lambda w: {"state_dict": w, "epoch": 3, "optimizer": {"state": {}}},
    "model": lambda w: {"model": w, "args": argparse.Namespace(lr=0.1), "epoch": 3},
    "net": lambda w: {"net": w, "acc": 93.1, "epoch": 3},
    "model_state_dict": lambda w: {"model_state_dict": w, "loss": torch.ones(())},
    "nested": lambda w: {"model": {"state_dict": w, "epoch": 1}},
    "averaged": lambda w: {"state_dict": zeros(w), "state_dict_ema": w, "arch": "x"},
    "torchvision's": lambda w: {
        "model": zeros(w),
        "model_ema": {"n_averaged": torch.ones(())} | {f"module.{k}": w[k] for k in w},
    },
    "no average": lambda w: {"state_dict": w, "state_dict_ema": None, "arch": "x"},
}


def zeros(weights):
    return {key: torch.zeros_like(value) for key, value in weights.items()}


@pytest.mark.parametrize("layout", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints(tmp_path, tiny, layout, caplog):
    content = layout({key: torch.from_numpy(value) for key, value in tiny[2].items()})
    torch.save(content, tmp_path / "a.pth")
    found = read_weights(tmp_path / "a.pth")
    assert_equal(from_torch("resnet20", found, **FAMILIES["resnet20"]), tiny[1])
    told = [message for message in caplog.messages if message.startswith("Of ")]
    assert (["Of"] if any("ema" in k and v for k, v in content.items()) else []) == [
        message[:2] for message in told
    ]
