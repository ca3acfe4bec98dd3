# SPDX-License-Identifier: Apache-2.0
"""Every form of stochastic depth: each combination, and the rules of other projects."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sizes import narrow, one_of_each

import rn_jax
from rn_jax import InputError, StochasticDepth, Subset, stochastic_depth
from rn_jax.models import MODELS
from rn_jax.models.resnet import ResNet

L, B = 4, 6
SCHEDULES = ("linear", "linear_from_zero", "uniform", (0.9, 0.8, 0.7, 0.6))
STATISTICS = (None, "frozen", "updated")


def works(granularity, schedule, statistics, num_open):
    """The table of combinations that have a meaning, written down once more."""
    if granularity == "example" and statistics == "frozen":
        return False
    if granularity == "subset":
        return schedule == "uniform" and statistics is None and num_open is None
    return num_open is None or schedule == "uniform"


@pytest.mark.parametrize(
    "granularity, schedule, scaling, statistics, num_open",
    [
        *itertools.product(
            stochastic_depth.GRANULARITIES,
            SCHEDULES,
            stochastic_depth.SCALINGS,
            STATISTICS,
            (None, 2),
        )
    ],
)
def test_every_combination_works_or_is_refused_in_one_sentence(
    granularity, schedule, scaling, statistics, num_open
):
    def make():
        return StochasticDepth(
            last_survival=0.5,
            granularity=granularity,
            schedule=schedule,
            scaling=scaling,
            closed_statistics=statistics,
            num_open=num_open,
        )

    if not works(granularity, schedule, statistics, num_open):
        with pytest.raises(InputError) as error:
            make()
        message = str(error.value)
        assert message.endswith(".") and ". " not in message
        return
    settings = make()
    probs = np.asarray(rn_jax.survival_probs(settings, L))
    gates = rn_jax.sample_gates(jax.random.key(0), settings, L, B)
    weights = 1 / probs if scaling == "training" else np.ones(L)
    if granularity == "subset":
        assert isinstance(gates, Subset) and gates.indices.shape == (L, 3)
        for row in np.asarray(gates.indices):
            assert len(set(row)) == 3 and set(row) <= set(range(B))
        np.testing.assert_allclose(gates.weights, weights[:, None] * np.ones(3))
    else:
        shape = {"batch": (L,), "example": (L, B)}[granularity]
        if granularity == "batch" and statistics == "updated":
            shape = (L, 1)
        assert gates.shape == shape
        columns = np.asarray(gates).reshape(L, -1).T
        for column in columns:
            assert all(
                g == 0 or np.isclose(g, w) for g, w in zip(column, weights, strict=True)
            )
            if num_open:
                assert np.count_nonzero(column) == num_open
    expected = probs if scaling == "test" else np.ones(L)
    np.testing.assert_allclose(rn_jax.eval_gates(settings, L), expected)


@pytest.mark.parametrize("scaling", ["training", "none", "test"])
@pytest.mark.parametrize("granularity", ["batch", "example", "subset"])
def test_mean_factor_of_a_branch_in_training_is_that_at_test(granularity, scaling):
    """But for "none", which leaves them different, as big_vision does."""
    settings = StochasticDepth(
        last_survival=0.5,
        schedule="uniform",
        granularity=granularity,
        scaling=scaling,
    )

    def factors(key):
        gates = rn_jax.sample_gates(key, settings, L, B)
        if isinstance(gates, Subset):
            dense = jnp.zeros((L, B))
            return dense.at[jnp.arange(L)[:, None], gates.indices].set(gates.weights)
        return jnp.broadcast_to(gates.reshape(L, -1), (L, B))

    drawn = jax.vmap(factors)(jax.random.split(jax.random.key(0), 4000))
    at_test = rn_jax.eval_gates(settings, L)
    expected = 0.5 if scaling == "none" else np.asarray(at_test)[:, None]
    np.testing.assert_allclose(drawn.mean(axis=0), expected * np.ones((L, B)), atol=0.1)


def test_exactly_k_blocks_are_open_and_all_choices_are_alike():
    settings = StochasticDepth(schedule="uniform", num_open=2)
    keys = jax.random.split(jax.random.key(1), 6000)
    gates = np.asarray(jax.vmap(lambda k: rn_jax.sample_gates(k, settings, L))(keys))
    assert (gates.sum(axis=1) == 2).all()
    patterns, counts = np.unique(gates, axis=0, return_counts=True)
    assert len(patterns) == 6  # 4 choose 2
    np.testing.assert_allclose(counts / 6000, 1 / 6, atol=0.02)
    with pytest.raises(InputError, match="num_open is 2, but there are 1 blocks"):
        rn_jax.sample_gates(jax.random.key(0), settings, 1)


def test_gates_of_examples_follow_their_place_in_the_global_batch():
    settings = StochasticDepth.preset("timm", last_survival=0.5)
    key = jax.random.key(2)
    whole = rn_jax.sample_gates(key, settings, L, 8)
    halves = [rn_jax.sample_gates(key, settings, L, 4, first) for first in (0, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(halves, axis=1))
    assert len(np.unique(np.asarray(whole), axis=1).T) > 1


def test_schedule_that_does_not_fit_the_network():
    settings = StochasticDepth(schedule=(0.9, 0.8))
    with pytest.raises(InputError, match=r"2 survival probabilities, .* 4 blocks"):
        rn_jax.survival_probs(settings, 4)
    with pytest.raises(InputError, match="must be in"):
        StochasticDepth(schedule=(0.9, 0.0))
    with pytest.raises(InputError, match="similar: huang2016"):
        StochasticDepth.preset("huang2015")


# --- The networks' side


@pytest.fixture(scope="module")
def network():
    model = ResNet((2, 2), features=(4, 8))
    images = jax.random.normal(jax.random.key(0), (B, 8, 8, 3))
    init = jax.jit(lambda key: model.init({"params": key}, images, train=False))
    return model, init(jax.random.key(1)), images


def run(network, gates, train=True):
    model, variables, images = network
    apply = jax.jit(
        lambda gates: model.apply(
            variables, images, train=train, gates=gates, mutable=["batch_stats"]
        )
    )
    return apply(gates)


def test_updated_statistics_compute_the_branch_of_a_closed_block(network):
    _, variables, _ = network
    closed = jnp.array([0.0, 1, 1, 1])
    frozen, updates = run(network, closed)
    logits, updated = run(network, closed[:, None])
    np.testing.assert_allclose(frozen, logits, atol=1e-5)
    before = variables["batch_stats"]["stage1"]["blocks"]["bn1"]["mean"][0]
    after = [
        u["batch_stats"]["stage1"]["blocks"]["bn1"]["mean"][0]
        for u in (
            updates,
            updated,
        )
    ]
    np.testing.assert_array_equal(after[0], before)
    assert not np.array_equal(after[1], before)


def test_subset_is_its_examples_through_the_branch_at_test(network):
    """Where BatchNorm's statistics are fixed, a subset is a choice of gates [L, B]."""
    settings = StochasticDepth(
        0.5, schedule="uniform", granularity="subset", scaling="training"
    )
    gates = rn_jax.sample_gates(jax.random.key(3), settings, L, B)
    dense = jnp.zeros((L, B))
    dense = dense.at[jnp.arange(L)[:, None], gates.indices].set(gates.weights)
    ours, _ = run(network, gates, train=False)
    theirs, _ = run(network, dense, train=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_statistics_of_a_subset_are_those_of_its_examples(network):
    """BatchNorm sees the examples that go through the branch, and no others."""
    _, variables, images = network
    indices = jnp.array([[0, 2, 5]] * L)
    _, updates = run(network, Subset(indices, jnp.ones((L, 3))))
    block = jax.tree.map(lambda a: a[0], variables["params"]["stage1"]["blocks"])
    stem = variables["params"]["stem_conv"]["kernel"]
    x = _conv(images, stem)
    mean, var = (f((0, 1, 2), keepdims=True) for f in (x.mean, x.var))
    x = (x - mean) / jnp.sqrt(var + 1e-5)
    y = _conv(jax.nn.relu(x)[indices[0]], block["conv1"]["kernel"])
    found = updates["batch_stats"]["stage1"]["blocks"]["bn1"]
    np.testing.assert_allclose(found["mean"][0], 0.1 * y.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found["var"][0], 0.9 + 0.1 * y.var((0, 1, 2)), atol=1e-5)


def _conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


FORMS = {
    "huang2016": StochasticDepth.preset("huang2016"),
    "timm": StochasticDepth.preset("timm"),
    "updated": StochasticDepth(closed_statistics="updated"),
    "exactly k": StochasticDepth(schedule="uniform", num_open=1),
    "subset": StochasticDepth(schedule="uniform", granularity="subset"),
    "shake": StochasticDepth(shake="batch"),
    "shake of examples": StochasticDepth(shake="example"),
}


def takes_form_or_says_that_it_has_no_shortcuts(model, size=32):
    """Shapes only, so that the list can grow."""
    images = jnp.zeros((4, size, size, 3))

    def trace():
        variables = model.init({"params": jax.random.key(0)}, images, train=False)
        return model.apply(
            variables,
            images,
            train=True,
            rngs={"gates": jax.random.key(1), "dropout": jax.random.key(2)},
            mutable=["batch_stats"],
        )[0]

    if model.has_shortcuts:
        assert jax.eval_shape(trace).shape == (4, model.num_classes)
    else:
        with pytest.raises(InputError, match="needs shortcuts"):
            jax.eval_shape(trace)


# The smallest network of each kind: depth and width make no difference to a form.
SMALLEST = one_of_each(sorted(MODELS, key=lambda name: MODELS[name].params))


@pytest.mark.slow
@pytest.mark.parametrize("place, name", list(enumerate(SMALLEST)))
def test_every_whole_network_takes_a_form(place, name):
    """The forms in turn; each meets every seventh network."""
    form = list(FORMS.values())[place % len(FORMS)]
    takes_form_or_says_that_it_has_no_shortcuts(
        rn_jax.create_model(name, stochastic_depth=form), MODELS[name].image_size
    )


def blocks_and_forms():
    """Every narrow network with every form; with one of them in `make test`."""
    names = [name for name in SMALLEST if rn_jax.create_model(name).num_blocks]
    for (i, name), (j, form) in itertools.product(enumerate(names), enumerate(FORMS)):
        marks = [pytest.mark.slow] if (i - j) % len(FORMS) else []
        yield pytest.param(name, form, marks=marks)


@pytest.mark.parametrize("name, form", list(blocks_and_forms()))
def test_every_network_takes_every_form(name, form):
    takes_form_or_says_that_it_has_no_shortcuts(
        narrow(name, stochastic_depth=FORMS[form])
    )


# --- ShakeDrop (Yamada et al. 2018)


@pytest.mark.parametrize("granularity", ["batch", "example"])
@pytest.mark.parametrize("shake", ["batch", "example"])
def test_shaken_gates(granularity, shake):
    """b + alpha - b alpha, alpha in [-1, 1], and b + beta - b beta, beta in [0, 1]."""
    settings = StochasticDepth(0.5, granularity=granularity, shake=shake)
    gates = rn_jax.sample_gates(jax.random.key(0), settings, 200, 50)
    by_example = "example" in (granularity, shake)
    assert gates.forward.shape == (200, 50 if by_example else 1)
    forward, backward = np.asarray(gates.forward), np.asarray(gates.backward)
    is_open = forward == 1
    np.testing.assert_array_equal(is_open, backward == 1)
    np.testing.assert_allclose(is_open.mean(), 0.75, atol=0.07)
    shares = stochastic_depth.open_shares(gates, 50)
    np.testing.assert_allclose(shares, is_open.mean(axis=1), rtol=1e-6)
    for values, least in ((forward, -1), (backward, 0)):
        closed = np.unique(values[~is_open])
        assert least <= closed.min() < least + 0.3 and 0.7 < closed.max() < 1
        # One for each closed example, or for each block that any of them closes.
        of_examples, of_blocks = (~is_open).sum(), (~is_open).any(axis=1).sum()
        drawn = of_examples if shake == "example" else of_blocks
        assert 0.99 * drawn < len(closed) <= drawn
    closed = forward[~is_open], backward[~is_open]
    assert abs(np.corrcoef(*closed)[0, 1]) < 0.4  # drawn independently


def test_shaken_gates_of_examples_follow_their_place_in_the_global_batch():
    settings = StochasticDepth(granularity="example", shake="example")
    key = jax.random.key(3)
    whole = rn_jax.sample_gates(key, settings, L, B)
    last = rn_jax.sample_gates(key, settings, L, 2, first_index=B - 2)
    np.testing.assert_array_equal(whole.forward[:, -2:], last.forward)
    np.testing.assert_array_equal(whole.backward[:, -2:], last.backward)
    with pytest.raises(InputError, match='shake "example" needs the batch size'):
        rn_jax.sample_gates(key, StochasticDepth(shake="example"), L)


@pytest.mark.parametrize("limits", [(-1, 1), (0, 1), (0, 0), (-0.5, 2.0)])
def test_shaken_gates_at_test_are_the_expectation(limits):
    settings = StochasticDepth(0.4, shake="batch", shake_forward=limits)

    def forward(key):
        return rn_jax.sample_gates(key, settings, L).forward[:, 0]

    drawn = jax.vmap(forward)(jax.random.split(jax.random.key(0), 5000))
    at_test = rn_jax.eval_gates(settings, L)
    np.testing.assert_allclose(at_test, drawn.mean(axis=0), atol=0.05)
    p = 1 - np.arange(1, L + 1) / L * 0.6
    np.testing.assert_allclose(at_test, p + (1 - p) * np.mean(limits), rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        pytest.param("pyramidnet110_48", marks=pytest.mark.slow),
        pytest.param("densenet40_12", marks=pytest.mark.slow),
    ],
)
def test_shaken_branch_by_its_factors(name, random_variables):
    """The value of a branch times alpha, and its gradient times beta.

    With the last gate alone other than 1, the gradient by its branch's parameters is
    beta / alpha times that with an ordinary gate of alpha, by the head it is the same.
    """
    model = narrow(name)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    variables = random_variables(model, (8, 8, 3))
    plain, behind = np.ones((2, model.num_blocks, 2), "float32")
    plain[-1], behind[-1] = -0.5, 0.2

    @jax.jit
    def run(params, gates):
        def loss(params):
            own = {**variables, "params": params}
            logits = model.apply(own, images, train=False, gates=gates)
            return jnp.square(logits).sum(), logits

        grads, logits = jax.grad(loss, has_aux=True)(params)
        return rn_jax.unstack({"params": grads})["params"], logits

    shaken = rn_jax.Shaken(plain, behind)
    ours, logits = run(variables["params"], shaken)
    theirs, expected = run(variables["params"], plain)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    stage, block = model.blocks[-1].name.split("/")
    mine, other = ours[stage][block], theirs[stage][block]
    assert jax.tree.leaves(mine)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b * 0.2 / -0.5, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        ours["head"]["kernel"], theirs["head"]["kernel"], rtol=1e-5
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"closed_statistics": "frozen"}, 'closed_statistics cannot be "frozen"'),
        ({"scaling": "training"}, "shake cannot be combined"),
        ({"granularity": "subset", "schedule": "uniform"}, "shake cannot be combined"),
        ({"shake": "pixel"}, "shake must be one of None, batch, example"),
        ({"shake_forward": (1, -1)}, "shake_forward must be two numbers"),
        ({"shake_backward": "01"}, "shake_backward must be two numbers"),
    ],
)
def test_settings_of_shake_that_have_no_meaning(fields, message):
    with pytest.raises(InputError, match=message):
        StochasticDepth(**{"shake": "batch", **fields})


# --- Other projects' rules, written down independently


def test_preset_of_the_authors_code():
    """main.lua: deathRate of block i of n is i / n * deathRate; gates per mini-batch;
    ResidualDrop.lua: training adds the branch as it is, testing times 1 - deathRate."""
    settings = StochasticDepth.preset("huang2016", last_survival=0.5)
    death = np.array([i / 54 * 0.5 for i in range(1, 55)])
    np.testing.assert_allclose(rn_jax.survival_probs(settings, 54), 1 - death, 1e-6)
    np.testing.assert_allclose(rn_jax.eval_gates(settings, 54), 1 - death, rtol=1e-6)
    gates = np.asarray(rn_jax.sample_gates(jax.random.key(0), settings, 54))
    assert set(np.unique(gates)) == {0.0, 1.0}


def row_mode(x, rate, rng):
    """timm's DropPath and torchvision's stochastic_depth(mode="row"), in numpy."""
    keep = rng.random(len(x)) < 1 - rate
    return x * keep[:, None] / (1 - rate)


@pytest.mark.parametrize("preset", ["timm", "torchvision"])
def test_preset_of_row_mode(preset):
    settings = StochasticDepth.preset(preset, last_survival=0.6)
    rates = np.linspace(0, 0.4, 16)  # timm's calculate_drop_path_rates; ConvNeXt's
    np.testing.assert_allclose(rn_jax.survival_probs(settings, 16), 1 - rates, 1e-6)
    np.testing.assert_array_equal(rn_jax.eval_gates(settings, 16), np.ones(16))
    gates = np.asarray(
        rn_jax.sample_gates(jax.random.key(0), settings, 16, batch_size=4000)
    )
    rng = np.random.default_rng(0)
    for gate, rate in zip(gates, rates, strict=True):
        theirs = row_mode(np.ones((4000, 1)), rate, rng)[:, 0]
        np.testing.assert_allclose(np.unique(gate), np.unique(theirs), rtol=1e-6)
        assert abs((gate == 0).mean() - (theirs == 0).mean()) < 0.05
        assert abs(gate.mean() - 1) < 0.05
    assert len(np.unique(gates, axis=1).T) > 1000  # each example has gates of its own


@pytest.mark.filterwarnings("ignore")
def test_presets_against_the_packages(torchvision):
    torch = pytest.importorskip("torch")
    layers = pytest.importorskip("timm.layers", reason="timm is an optional peer")
    count = 4000
    torch.manual_seed(0)
    rates = layers.calculate_drop_path_rates(0.4, 16)
    settings = StochasticDepth.preset("timm", last_survival=0.6)
    np.testing.assert_allclose(
        rn_jax.survival_probs(settings, 16), 1 - np.array(rates), 1e-5
    )
    gates = np.asarray(rn_jax.sample_gates(jax.random.key(1), settings, 16, count))
    ones = torch.ones(count, 1)
    for gate, rate in zip(gates, rates, strict=True):
        for theirs in (
            layers.drop_path(ones, rate, training=True),
            torchvision.ops.stochastic_depth(ones, rate, "row", training=True),
        ):
            theirs = theirs.numpy()[:, 0]
            np.testing.assert_allclose(np.unique(gate), np.unique(theirs), rtol=1e-5)
            assert abs((gate == 0).mean() - (theirs == 0).mean()) < 0.05
