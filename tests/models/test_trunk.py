# SPDX-License-Identifier: Apache-2.0
"""Two layouts of the same blocks: stacked for speed, one subtree each for surgery."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rn_jax
from rn_jax import InputError, block_variables
from rn_jax.models.layers import Conv
from rn_jax.models.normalization import BatchNorm
from rn_jax.models.resnet import BasicBlock, PlainLayer, ResNet
from rn_jax.models.trunk import Stage, block_infos, block_name, default_unroll

IMAGE = (6, 6, 3)
MODELS = {
    "resnet": ResNet((3, 2), num_classes=3, features=(4, 8)),
    "one block a stage": ResNet((1, 1), num_classes=3, features=(4, 8)),
    "projections": ResNet((2, 3), num_classes=3, features=(4, 8), shortcut="C"),
    "plain": ResNet(
        (3, 2), num_classes=3, features=(4, 8), block=PlainLayer, shortcut=None
    ),
    "ten and more": ResNet((12,), num_classes=3, features=(4,)),
}


@pytest.fixture(params=MODELS)
def network(request, random_variables):
    model = MODELS[request.param]
    return model, random_variables(model, IMAGE)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_round_trip_is_exact(network):
    model, variables = network
    unstacked = rn_jax.unstack(variables)
    assert_equal(rn_jax.stack(unstacked, model), variables)
    assert_equal(rn_jax.unstack(unstacked), unstacked)
    for collection in ("params", "batch_stats"):
        names = [
            f"{stage}/{block}"
            for stage in sorted(unstacked[collection])
            if stage.startswith("stage")
            for block in sorted(unstacked[collection][stage])
        ]
        assert names == [b.name for b in model.blocks]
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (variables, unstacked)
    ]
    assert sizes[0] == sizes[1]


def test_variables_of_one_block(network):
    model, variables = network
    unstacked = rn_jax.unstack(variables)
    for info in model.blocks:
        stage = f"stage{info.stage}"
        sizes = [b.index for b in model.blocks if b.stage == info.stage]
        expected = {}
        for collection in ("params", "batch_stats"):
            tree = variables[collection][stage]
            place = info.index - sizes[0]
            if "first" in tree:
                place -= 1
            if place < 0:
                expected[collection] = tree["first"]
            else:
                expected[collection] = jax.tree.map(lambda a: a[place], tree["blocks"])
        assert_equal(block_variables(variables, info.index), expected)
        assert_equal(block_variables(unstacked, info.index), expected)
    for index in (-1, model.num_blocks):
        with pytest.raises(IndexError, match=f"There are {model.num_blocks} blocks"):
            block_variables(variables, index)


def test_surgery_leaves_the_original_whole(network):
    model, variables = network
    last = model.num_blocks - 1
    before = jax.tree.map(np.copy, variables)
    unstacked = rn_jax.unstack(variables)
    unstacked["params"]["stem_conv"].clear()
    for info in model.blocks:
        stage, block = info.name.split("/")
        unstacked["params"][stage][block].clear()
    for index in (0, last):
        block_variables(variables, index)["params"].clear()
    assert_equal(before, variables)


def test_stack_with_another_number_of_blocks(network):
    model, variables = network
    unstacked = rn_jax.unstack(variables)
    stage = f"stage{model.blocks[-1].stage}"
    removed = sorted(unstacked["params"][stage])[-1]
    for collection in ("params", "batch_stats"):
        del unstacked[collection][stage][removed]
    n = model.stage_sizes[-1]
    with pytest.raises(InputError, match=f"^{stage} has {n - 1} blocks, but {n} in"):
        rn_jax.stack(unstacked, model)


def test_stack_of_what_is_stacked_already(network):
    model, variables = network
    with pytest.raises(InputError, match="already stacked"):
        rn_jax.stack(variables, model)


@pytest.mark.parametrize("size", [1, 9, 10, 99, 100, 200])
def test_names_sort(size):
    names = [block_name(place, size) for place in range(1, size + 1)]
    assert names == sorted(names)
    assert len(set(map(len, names))) == 1
    assert names[0] in ("block01", "block001")


def test_block_infos():
    infos = block_infos((2, 1, 2), (4, 4, 8), (1, 2, 1), 4, has_shortcut=True)
    assert [b.name for b in infos] == [
        "stage1/block01",
        "stage1/block02",
        "stage2/block01",
        "stage3/block01",
        "stage3/block02",
    ]
    assert [b.index for b in infos] == [0, 1, 2, 3, 4]
    assert [b.stage for b in infos] == [1, 1, 2, 3, 3]
    # A stride changes the shape, more channels do, and a wider stem does.
    assert [b.same_shape for b in infos] == [True, True, False, False, True]
    assert all(b.skippable for b in infos)
    (info,) = block_infos((1,), (4,), (1,), 3, has_shortcut=False)
    assert not info.same_shape and not info.skippable


# --- The layout is only a layout ------------------------------------------------------


def network_by_single_blocks(variables, images, order):
    """Pooled features, block after block in that order, none of them in a scan."""
    norm = partial(BatchNorm, use_running_average=True)

    def part(module, name, x):
        mine = {c: v[name] for c, v in variables.items() if name in v}
        return module.apply(mine, x)

    x = part(Conv(4), "stem_conv", images)
    x = nn.relu(part(norm(), "stem_bn", x))
    for index in order:
        widens = index == 3
        block = BasicBlock(
            4 if index < 3 else 8, 2 if widens else 1, "A", Conv, norm, nn.relu
        )
        x = jax.jit(partial(block.apply, train=False))(
            block_variables(variables, index), x
        )
    return x.mean((1, 2))


def test_permuting_blocks_is_a_take(x64, random_variables):
    model = ResNet((3, 3), num_classes=None, features=(4, 8))
    variables = random_variables(model, IMAGE, "float64")
    images = np.random.default_rng(0).normal(size=(2, *IMAGE))
    run = jax.jit(partial(model.apply, train=False))
    straight = run(variables, images)
    np.testing.assert_allclose(
        straight,
        network_by_single_blocks(variables, images, range(6)),
        rtol=0,
        atol=1e-12,
    )

    permuted = {}
    for collection, tree in variables.items():
        permuted[collection] = dict(tree)
        for stage, order in (("stage1", [2, 0, 1]), ("stage2", [1, 0])):
            blocks = jax.tree.map(
                lambda a: jax.numpy.take(a, np.array(order), axis=0),
                tree[stage]["blocks"],
            )
            permuted[collection][stage] = {**tree[stage], "blocks": blocks}
    ours = run(permuted, images)
    expected = network_by_single_blocks(variables, images, [2, 0, 1, 3, 5, 4])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    assert np.abs(ours - straight).max() > 1e-3


# --- Collections and streams of keys of a block's own ---------------------------------


class KeepingBlock(BasicBlock):
    """x + dense(x) that keeps an average and a count, sows a loss, and adds noise."""

    def shortcut(self, x, *, train):
        self.sow("inputs", "mean", x.mean())
        return super().shortcut(x, train=train)

    def residual(self, x, *, train):
        y = nn.Dense(self.features)(x[:, :: self.stride, :: self.stride])
        mean = self.variable("ema", "mean", jnp.ones, (self.features,))
        calls = self.variable("calls", "n", jnp.zeros, (), jnp.int32)
        if self.is_mutable_collection("ema") and not self.is_initializing():
            mean.value = 0.5 * mean.value + 0.5 * y.mean((0, 1, 2))
            calls.value += 1
        self.sow("losses", "size", jnp.square(y).mean())
        if self.has_rng("noise"):
            noise = jax.random.normal(self.make_rng("noise"), y.shape)
            self.sow("drawn", "noise", noise)
            y = y + noise
        return y


KEPT = ("ema", "calls")
SOWN = ("losses", "inputs")
keeping = partial(
    ResNet, (3, 3), num_classes=None, features=(4, 8), block=KeepingBlock, remat="none"
)


@pytest.fixture(scope="module")
def kept():
    """Images, and the variables of `keeping` with an average that is not the first."""
    images = np.random.default_rng(0).normal(size=(2, *IMAGE)).astype("float32")
    init = jax.jit(partial(keeping().init, train=False))
    variables = init({"params": jax.random.key(0)}, images)
    shapes = jax.tree.map(jnp.shape, {name: variables[name] for name in KEPT})
    for name, leaf, features in (("ema", "mean", True), ("calls", "n", False)):
        assert shapes[name] == {
            "stage1": {"blocks": {leaf: (3, 4) if features else (3,)}},
            "stage2": {
                "first": {leaf: (8,) if features else ()},
                "blocks": {leaf: (2, 8) if features else (2,)},
            },
        }
    return images, {name: variables[name] for name in variables if name not in SOWN}


def apply_kept(model, variables, images, gates=None, noise=None, extra=(), **options):
    mutable = ("batch_stats", *KEPT, *SOWN, "drawn", *extra)
    run = partial(model.apply, train=True, mutable=mutable, **options)
    rngs = {} if noise is None else {"noise": jax.random.key(noise)}
    return jax.jit(run)(variables, images, gates=gates, rngs=rngs)


def kept_by_single_blocks(variables, images, gates):
    """Features and each block's collections, blocks one after another without a scan.

    What a closed block's branch would sow is zeros, and its variables stay.
    """
    norm = partial(BatchNorm, use_running_average=False)

    def part(module, name, x):
        mine = {c: v[name] for c, v in variables.items() if name in v}
        return module.apply(mine, x, mutable=["batch_stats"])[0]

    x = part(Conv(4), "stem_conv", images)
    x = nn.relu(part(norm(), "stem_bn", x))
    updates = []
    for index, gate in enumerate(gates):
        features, stride = (4, 1) if index < 3 else (8, 2 if index == 3 else 1)
        block = KeepingBlock(features, stride, "A", Conv, norm, nn.relu)
        before = block_variables(variables, index)
        y, after = block.apply(before, x, train=True, mutable=[*KEPT, *SOWN])
        if not gate:
            shortcut = x[:, ::stride, ::stride]
            y = jnp.pad(shortcut, ((0, 0),) * 3 + ((0, features - x.shape[-1]),))
            after |= {name: before[name] for name in KEPT}
            after["losses"] = {"size": (np.zeros((), "float32"),)}
        x, updates = y, [*updates, after]
    return x.mean((1, 2)), updates


@pytest.mark.parametrize(
    "fields", [{}, {"remat": "cheap", "scan_unroll": 2}, {"remat": "all"}]
)
def test_blocks_keep_and_sow_in_any_collection(kept, fields):
    images, variables = kept
    for gates in (np.ones(6), np.array([1, 0, 1, 0, 0, 1])):
        expected = kept_by_single_blocks(variables, images, gates)
        runs = [gates.astype("float32")]
        if gates.all():
            runs += [None, np.ones((6, 2), "float32")]
        for given in runs:
            y, updates = apply_kept(keeping(**fields), variables, images, given)
            np.testing.assert_allclose(y, expected[0], rtol=1e-5)
            for index, theirs in enumerate(expected[1]):
                ours = block_variables(updates, index)
                ours = {name: ours[name] for name in (*KEPT, *SOWN)}
                jax.tree.map(
                    partial(np.testing.assert_allclose, rtol=1e-5), ours, theirs
                )


def test_capturing_keeps_closed_blocks_untouched_too(kept):
    images, variables = kept
    gates = np.array([1, 0, 1, 0, 0, 1], "float32")
    y, updates = apply_kept(keeping(), variables, images, gates)
    again, captured = apply_kept(
        keeping(), variables, images, gates, extra=["intermediates"]
    )
    assert np.any(captured.pop("intermediates")["stage1"]["blocks"]["residual"][0])
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close, (again, captured), (y, updates))


def test_closed_blocks_sow_zeros_without_jit_too(kept):
    images, variables = kept
    gates = np.array([1, 0, 1, 0, 0, 1], "float32")
    expected = apply_kept(keeping(), variables, images, gates)
    with jax.disable_jit():
        found = apply_kept(keeping(), variables, images, gates)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found, expected)


def test_values_that_are_there_already_are_sown_after(kept):
    # As `init` gives them; Flax appends.
    images, variables = kept
    _, updates = apply_kept(keeping(), variables, images)
    gates = np.array([0, 1, 1, 0, 1, 0], "float32")
    _, twice = apply_kept(keeping(), {**variables, **updates}, images, gates)
    for index, gate in enumerate(gates):
        before = block_variables(updates, index)["losses"]["size"]
        first, second = block_variables(twice, index)["losses"]["size"]
        assert first == before[0] and (float(second) != 0) == gate


def test_every_block_draws_numbers_of_its_own_from_any_stream(kept):
    images, variables = kept

    def drawn(gates=None, noise=1, **fields):
        _, updates = apply_kept(keeping(**fields), variables, images, gates, noise)
        sown = [block_variables(updates, i)["drawn"]["noise"][0] for i in range(6)]
        return [np.asarray(block) for block in sown]

    plain = drawn()
    firsts = [block.ravel()[:8] for block in (*plain, *drawn(noise=2))]
    assert len(np.unique(firsts)) == 12 * 8  # all differ
    gates = np.array([1, 0, 1, 0, 0, 1], "float32")
    for closed in (gates, 1 - gates):
        for block, expected, gate in zip(drawn(closed), plain, closed, strict=True):
            np.testing.assert_array_equal(block, gate * expected)
    for fields in ({"remat": "all"}, {"remat": "cheap", "scan_unroll": 3}):
        assert_equal(drawn(**fields), plain)


def test_layouts_of_any_collection(kept):
    images, variables = kept
    model = keeping()
    _, updates = apply_kept(
        model, variables, images, extra=["intermediates"], capture_intermediates=True
    )
    # What only blocks in a scan, or only those outside of it, have.
    everything = {"params": variables["params"], **updates}
    everything["in scans"] = {"stage2": {"blocks": {"a": np.arange(2)}}}
    everything["outside"] = {"stage2": {"first": {"a": (np.arange(3),)}}}
    unstacked = rn_jax.unstack(everything)
    assert "__call__" in unstacked["intermediates"]["stage1"]
    assert unstacked["in scans"] == {
        "stage2": {"block02": {"a": 0}, "block03": {"a": 1}}
    }
    assert sorted(unstacked["outside"]["stage2"]) == ["block01"]
    assert_equal(rn_jax.stack(unstacked, model), everything)
    for layout in (everything, unstacked):
        assert block_variables(layout, 4)["in scans"] == {"a": 0}
        assert "outside" not in block_variables(layout, 4)
        assert "in scans" not in block_variables(layout, 3)
        size = block_variables(layout, 5)["losses"]["size"]
        assert size == (everything["losses"]["stage2"]["blocks"]["size"][0][1],)
    del unstacked["in scans"]["stage2"]["block03"]
    with pytest.raises(InputError, match="stage2 has 2 blocks, but 3 in the model"):
        rn_jax.stack(unstacked, model)


def test_parameters_are_those_that_a_scan_draws():
    """The keys of a stage's blocks are split as `nn.scan` splits them."""
    norm = partial(BatchNorm, use_running_average=False)
    parts = {"shortcut_kind": "A", "conv": Conv, "norm": norm, "activation": nn.relu}
    block = partial(BasicBlock, **parts)

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                lambda block, x, _: (block(x, train=True), None),
                variable_axes={True: 0},
                split_rngs={True: True},
                length=3,
            )
            return scan(block(features=4, stride=1, name="blocks"), x, None)[0]

    x = jnp.zeros((1, 6, 6, 4))
    expected = Scanned().init(jax.random.key(0), x)
    stage = Stage(block, None, 3, 4, 1, 1)
    found = stage.init(jax.random.key(0), x, None, None, train=True)
    assert_equal(found["params"], expected["params"])


def test_a_gpu_has_a_straight_line_of_limited_length():
    """ResNet-110 and 164, not 1202: the time to compile is bounded."""
    assert default_unroll(54, "gpu") == 54
    assert default_unroll(64, "gpu") == 64
    assert default_unroll(65, "gpu") == default_unroll(600, "gpu") == 1
    assert default_unroll(9, "cpu") == default_unroll(9, "tpu") == 1


# --- Values of each block -------------------------------------------------------------


class RatedBlock(BasicBlock):
    """(1 + index) x + rate * depth * dense(x)."""

    per_block = ("index", "depth", "rate")

    def shortcut(self, x, *, train, index, depth, rate):
        assert index.dtype == jnp.int32 and depth.dtype == rate.dtype == jnp.float32
        y = super().shortcut(x, train=train)
        return (1 + index).astype(jnp.float32) * y

    def residual(self, x, *, train, index, depth, rate):
        x = x[:, :: self.stride, :: self.stride]
        return rate * depth * nn.Dense(self.features)(x)


RATES = [0.5, 2.0, 0.25, 3.0, 0.125, 1.5]


@pytest.mark.parametrize("scan_unroll", [1, 2, 6])
@pytest.mark.parametrize("gates", [None, [1, 0, 1, 1, 0, 1]])
def test_each_block_has_its_own_values(random_variables, scan_unroll, gates):
    model = ResNet(
        *((3, 3), (4, 8)),
        block=RatedBlock,
        block_kwargs={"rate": np.array(RATES)},
        num_classes=None,
        scan_unroll=scan_unroll,
    )
    variables = random_variables(model, IMAGE)
    images = np.random.default_rng(0).normal(size=(2, *IMAGE)).astype("float32")
    call = {"train": True, "mutable": ["batch_stats"], "gates": gates}
    found = jax.jit(partial(model.apply, **call))(variables, images)[0]
    stem = jax.jit(partial(rn_jax.features, model, names=["stem"], **call))
    x = np.asarray(stem(variables, images)[0]["stem"])
    for index, rate in enumerate(RATES):
        stride = 2 if index == 3 else 1
        dense = block_variables(variables, index)["params"]["Dense_0"]
        x = x[:, ::stride, ::stride]
        branch = rate * index / 5 * (x @ dense["kernel"] + dense["bias"])
        more = branch.shape[-1] - x.shape[-1]
        x = (1 + index) * np.pad(x, ((0, 0),) * 3 + ((0, more),))
        if gates is None or gates[index]:
            x = x + branch
        x = np.maximum(x, 0)
    np.testing.assert_allclose(found, x.mean((1, 2)), rtol=1e-4)


def rated(rates):
    return ResNet((3, 3), block=RatedBlock, block_kwargs={"rate": rates})


def test_values_of_each_block_are_checked_and_kept_as_numbers():
    model = rated(jnp.array(RATES))
    assert model.block_kwargs["rate"] == tuple(RATES) and hash(model)
    for wrong in (RATES[1:], 3, None, ["a"] * 6):
        with pytest.raises(InputError, match="rate in block_kwargs must be 6 num"):
            rated(wrong)
    with pytest.raises(InputError, match="rate in block_kwargs must be 6 numbers"):
        ResNet((3, 3), block=RatedBlock)
    with pytest.raises(InputError, match="Unknown field of RatedBlock 'depth'"):
        ResNet((3, 3), block=RatedBlock, block_kwargs={"rate": RATES, "depth": RATES})
