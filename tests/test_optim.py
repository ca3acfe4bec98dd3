# SPDX-License-Identifier: Apache-2.0
"""SGD against the papers' update rules written out in numpy; schedules at the steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rn_jax import InputError, create_model, optim
from rn_jax.models.resnet import ResNet


def trained_by_numpy(w, grads, rates, *, form, nesterov, momentum=0.9, decay=0.01):
    """SGD of Torch (optim/sgd.lua) or Caffe (sgd_solver, nesterov_solver)."""
    v = np.zeros_like(w)
    for g, rate in zip(grads, rates, strict=True):
        g = g + decay * w
        if form == "torch":
            v = momentum * v + g
            w = w - rate * (g + momentum * v if nesterov else v)
        else:
            before, v = v, momentum * v + rate * g
            w = w - ((1 + momentum) * v - momentum * before if nesterov else v)
    return w


@pytest.mark.parametrize("form", ["torch", "caffe"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", ["all", "kernels"])
def test_sgd_over_a_warm_up_and_a_drop_of_the_rate(x64, form, nesterov, decay):
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)},
        "bn": {"scale": rng.normal(size=4)},
    }
    schedule = optim.piecewise_schedule(0.5, drops=(5,), warmup_steps=2)
    rates = [0.01, 0.01, 0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.05]
    tx = optim.sgd(
        schedule,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=0.01,
        decay=decay,
        bias_rate=2.0,
        momentum_form=form,
    )
    state, ours, grads = tx.init(params), params, []
    for _ in rates:
        grads.append(jax.tree.map(lambda p: rng.normal(size=p.shape), params))
        updates, state = tx.update(grads[-1], state, ours)
        ours = optax.apply_updates(ours, updates)
    for module, name in (("conv", "kernel"), ("conv", "bias"), ("bn", "scale")):
        expected = trained_by_numpy(
            params[module][name],
            [g[module][name] for g in grads],
            np.array(rates) * (2 if name == "bias" else 1),
            form=form,
            nesterov=nesterov,
            decay=0.01 if decay == "all" or name == "kernel" else 0,
        )
        # The schedule gives the rate in float32.
        np.testing.assert_allclose(ours[module][name], expected, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_forms_differ_after_the_rate_has_changed_and_not_before(x64, nesterov):
    """The velocity of Caffe's form outlives a drop for some ten steps, then decays."""
    grads, found = np.ones((125, 1)), {}
    for form in ("torch", "caffe"):
        schedule = optim.piecewise_schedule(1.0, drops=(5,))
        tx = optim.sgd(
            schedule,
            momentum=0.9,
            nesterov=nesterov,
            weight_decay=0.0,
            decay="all",
            momentum_form=form,
        )
        state, found[form] = tx.init(grads[0]), []
        for g in grads:
            update, state = tx.update(g, state, g)
            found[form].append(float(update[0]))
    torch, caffe = (np.array(found[form]) for form in ("torch", "caffe"))
    np.testing.assert_allclose(caffe[:5], torch[:5], rtol=1e-12)
    assert (caffe[5:10] < 3 * torch[5:10]).all()  # both are negative
    excess = caffe - torch
    np.testing.assert_allclose(excess[6:40], 0.9 * excess[5:39], rtol=1e-6)
    np.testing.assert_allclose(caffe[-5:], torch[-5:], rtol=1e-4)


def test_a_factor_of_the_rate_is_inside_the_velocity_in_caffes_form(x64):
    rng = np.random.default_rng(0)
    w, factors = rng.normal(size=3), [1.0, 1.0, 0.1, 0.1]
    tx = optim.sgd(
        optim.piecewise_schedule(0.5),
        momentum=0.9,
        nesterov=True,
        weight_decay=0.01,
        decay="all",
        momentum_form="caffe",
    )
    state, ours, grads = tx.init(w), w, rng.normal(size=(4, 3))
    for g, factor in zip(grads, factors, strict=True):
        updates, state = tx.update(g, state, ours, rate_factor=factor)
        ours = optax.apply_updates(ours, updates)
    rates = 0.5 * np.array(factors)
    expected = trained_by_numpy(w, grads, rates, form="caffe", nesterov=True)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_a_block_without_gradient_still_decays_and_moves():
    """As the flat parameter vector of the authors' code makes a closed block do."""
    params = {"kernel": jnp.array([1.0])}
    tx = optim.sgd(
        optim.piecewise_schedule(1.0),
        momentum=0.5,
        nesterov=False,
        weight_decay=0.25,
        decay="all",
    )
    state = tx.init(params)
    for expected in (0.75, 0.4375):  # v = 1/4, then 1/8 + 3/16
        updates, state = tx.update({"kernel": jnp.array([0.0])}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], [expected])


def test_kernel_mask_goes_by_name_in_a_scanned_model():
    """Stacked BatchNorm scales have the rank of a matrix; they must not decay."""
    model = create_model("resnet20", shortcut="B")
    shapes = jax.eval_shape(
        lambda: model.init(
            {"params": jax.random.key(0)}, jnp.zeros((1, 8, 8, 3)), train=False
        )
    )
    mask = optim.kernel_mask(shapes["params"])
    scale = shapes["params"]["stage1"]["blocks"]["bn1"]["scale"]
    assert scale.ndim == 2
    assert mask["stage1"]["blocks"]["bn1"] == {"scale": False, "bias": False}
    assert mask["stage1"]["blocks"]["conv1"] == {"kernel": True}
    assert mask["stage2"]["first"]["shortcut"]["conv"] == {"kernel": True}
    assert mask["head"] == {"kernel": True, "bias": False}
    # All of shortcut B's 272,474 parameters but the scales and offsets of 7 BatchNorms
    # a stage (6 in blocks, and the stem's or the projection's) and the head's biases.
    kernels = jax.tree.map(lambda m, s: s.size if m else 0, mask, shapes["params"])
    batch_norms = 2 * (16 * 7 + 32 * 7 + 64 * 7)
    assert sum(jax.tree.leaves(kernels)) == 272_474 - batch_norms - 10


def test_schedule_drops_and_warms_up_at_the_steps_named():
    schedule = optim.piecewise_schedule(
        0.1, drops=(32_000, 48_000), warmup_steps=400, warmup_learning_rate=0.01
    )
    rates = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01}
    rates |= {47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    for step, rate in rates.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-6, err_msg=str(step))


def test_schedule_without_drops_is_constant():
    assert optim.piecewise_schedule(0.3)(12345) == np.float32(0.3)


def test_bad_settings_are_rejected():
    with pytest.raises(InputError, match="one after another"):
        optim.piecewise_schedule(0.1, drops=(300,), warmup_steps=400)
    with pytest.raises(InputError, match='"all" or "kernels"'):
        optim.sgd(
            optim.piecewise_schedule(0.1),
            momentum=0.9,
            nesterov=False,
            weight_decay=0.0,
            decay="conv",
        )
    with pytest.raises(InputError, match='"torch" or "caffe", not \'keras\''):
        optim.sgd(
            optim.piecewise_schedule(0.1),
            momentum=0.9,
            nesterov=False,
            weight_decay=0.0,
            decay="all",
            momentum_form="keras",
        )


def test_optimiser_state_is_that_of_a_small_model():
    """The mask is applied to the structure that a real model has."""
    model = ResNet((1, 1), features=(4, 8))
    shapes = jax.eval_shape(
        lambda: model.init(
            {"params": jax.random.key(0)}, jnp.zeros((1, 8, 8, 1)), train=False
        )
    )
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes["params"])
    tx = optim.sgd(
        optim.piecewise_schedule(1.0),
        momentum=0.0,
        nesterov=False,
        weight_decay=0.5,
        decay="kernels",
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
    assert moved == optim.kernel_mask(params)


@pytest.mark.parametrize("warmup", [0, 20])
def test_cosine_by_its_formula(warmup):
    schedule = optim.cosine_schedule(
        0.4, total_steps=120, warmup_steps=warmup, warmup_learning_rate=0.03
    )
    for step in (0, 19, 20, 50, 119, 120):
        turn = np.pi * (step - warmup) / (120 - warmup)
        expected = 0.03 if step < warmup else 0.2 * (1 + np.cos(turn))
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-7)
    with pytest.raises(InputError, match="warm-up of 120 steps must end before"):
        optim.cosine_schedule(0.4, total_steps=120, warmup_steps=120)


def test_a_controller_without_settings_changes_nothing():
    controller = optim.RateController()
    state = controller.init()
    assert state == {}
    assert controller.factor(state) == 1
    assert controller.after_step(state, jnp.float32(50)) == {}
    assert controller.after_evaluation(state, 50.0) == {}


def test_warmup_ends_when_the_training_error_has_fallen_and_does_not_come_back():
    controller = optim.RateController(warmup_factor=0.1, warmup_until_error=80.0)
    state, mean, ended, seen = controller.init(), 100.0, False, []
    for error in [90.0] * 30 + [0.0] + [90.0] * 30 + [70.0] * 40 + [95.0] * 40:
        expected = 1 if ended else 0.1
        assert float(controller.factor(state)) == pytest.approx(expected)
        state = controller.after_step(state, jnp.float32(error))
        mean = 0.95 * mean + 0.05 * error
        ended = ended or mean < 80
        seen.append(ended)
    # One batch without an error does not end it, a falling error does.
    assert seen.index(True) in range(61, 101)


def test_a_plateau_divides_the_rate():
    controller = optim.RateController(plateau_factor=0.1, plateau_patience=3)
    errors = [50, 40, 41, 40, 39, 39, 45, 39.5, 38, 38, 38, 38, 38, 38, 30]
    errors += [31] * 9  # three more plateaus, of which one counts
    state, best, waited, rate = controller.init(), np.inf, 0, 1.0
    for error in errors:
        state = controller.after_evaluation(state, error)
        waited = 0 if error < best else waited + 1
        best = min(best, error)
        if waited == 3:
            rate, waited = max(rate / 10, 1e-3), 0
        assert float(controller.factor(state)) == pytest.approx(rate)
        assert controller.after_step(state, jnp.float32(1)) is state
    assert rate == pytest.approx(1e-3)


def test_biases_may_learn_faster():
    params = {"fc": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    tx = optim.sgd(
        optim.piecewise_schedule(0.1),
        momentum=0.9,
        nesterov=True,
        weight_decay=0.5,
        decay="all",
        bias_rate=2.0,
    )
    updates, _ = tx.update(params, tx.init(params), params)
    rate = -0.1 * 1.9 * 1.5
    np.testing.assert_allclose(updates["fc"]["kernel"], [rate, rate], rtol=1e-6)
    np.testing.assert_allclose(updates["fc"]["bias"], [2 * rate] * 2, rtol=1e-6)


def test_loss_scale_halves_at_once_and_doubles_slowly():
    scaling = optim.LossScaling(initial=4.0, growth_interval=3)
    state, seen = scaling.init(), []
    for finite in (True, True, True, False, True, False, False, False, *[True] * 6):
        state = scaling.after_step(state, jnp.bool_(finite))
        seen.append(float(state["factor"]))
    assert seen == [4, 4, 8, 4, 4, 2, 1, 1, 1, 1, 2, 2, 2, 4]


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("kind", ["cosine", "piecewise"])
def test_64_bits_change_no_update(same_in_64_bits, kind, warmup):
    """Whatever the rate's own dtype, updates and their state are of the parameters'."""
    if kind == "cosine":
        rate = optim.cosine_schedule(0.1, total_steps=9, warmup_steps=warmup)
    else:
        rate = optim.piecewise_schedule(0.1, drops=(5, 8), warmup_steps=warmup)
    rule = optim.sgd(
        rate, momentum=0.9, nesterov=True, weight_decay=1e-4, decay="kernels"
    )
    params = {"kernel": np.ones((2, 3), "float32"), "bias": np.ones(3, "float32")}
    controller = optim.RateController(warmup_until_error=80.0, plateau_patience=2)
    scaling = optim.LossScaling()

    def compute():
        updates = rule.update(params, rule.init(params), params)
        after = controller.after_step(controller.init(), jnp.float32(50))
        after = controller.after_evaluation(after, 33.3)
        scales = scaling.after_step(scaling.init(), jnp.bool_(False))
        return updates, after, controller.factor(after), scales

    same_in_64_bits(compute)


def stepped(tx, params, grads):
    """Parameters after steps with these gradients."""
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_adamw_decays_apart_from_the_gradient(x64):
    """Loshchilov and Hutter 2019, algorithm 2, on kernels; Adam on biases."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=5), "bias": rng.normal(size=5)}
    grads = [jax.tree.map(lambda p: rng.normal(size=5), params) for _ in range(4)]
    tx = optim.adamw(
        optim.piecewise_schedule(0.1, drops=(2,)),
        beta1=0.8,
        beta2=0.9,
        epsilon=1e-3,
        weight_decay=0.3,
        decay="kernels",
        bias_rate=2.0,
    )
    ours = stepped(tx, params, grads)
    for name, decay, times in (("kernel", 0.3, 1), ("bias", 0, 2)):
        w, m, v = params[name], 0, 0
        for t, g in enumerate((g[name] for g in grads), start=1):
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
            adam = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
            w = w - times * (0.1 if t <= 2 else 0.01) * (adam + decay * w)
        np.testing.assert_allclose(ours[name], w, rtol=1e-5)


def test_lars_has_a_rate_for_each_layer_of_a_stack(x64):
    """You et al. 2017, algorithm 1; a layer without gradient decays as by SGD."""
    rng = np.random.default_rng(0)
    tree = {
        "stage1": {"blocks": {"conv": {"kernel": rng.normal(size=(3, 2, 4))}}},
        "head": {"kernel": rng.normal(size=(2, 4)), "bias": rng.normal(size=4)},
    }
    grads = [jax.tree.map(lambda p: rng.normal(size=p.shape), tree) for _ in range(3)]
    for g in grads:
        g["stage1"]["blocks"]["conv"]["kernel"][1] = 0
    tx = optim.sgd(
        optim.piecewise_schedule(0.5, drops=(2,)),
        momentum=0.9,
        nesterov=False,
        weight_decay=0.1,
        decay="kernels",
        momentum_form="caffe",
        trust_coefficient=0.02,
    )
    ours = stepped(tx, tree, grads)

    def by_numpy(w, grads, kernel=True):
        v = 0
        for g, rate in zip(grads, (0.5, 0.5, 0.05), strict=True):
            norms = np.linalg.norm(w), np.linalg.norm(g)
            layer = 0.02 * norms[0] / (norms[1] + 0.1 * norms[0]) if all(norms) else 1
            v = 0.9 * v + rate * (layer * (g + 0.1 * w) if kernel else g)
            w = w - v
        return w

    def kernels(tree):
        return tree["stage1"]["blocks"]["conv"]["kernel"]

    for i in range(3):
        expected = by_numpy(kernels(tree)[i], [kernels(g)[i] for g in grads])
        np.testing.assert_allclose(kernels(ours)[i], expected, rtol=1e-6)
    for name in ("kernel", "bias"):
        of_head = [g["head"][name] for g in grads]
        expected = by_numpy(tree["head"][name], of_head, name == "kernel")
        np.testing.assert_allclose(ours["head"][name], expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["torch", "caffe"])
def test_a_clipped_gradient_keeps_its_direction_and_is_not_the_decay(x64, form):
    params = {"a": {"kernel": np.ones(2)}, "b": {"kernel": np.ones(1)}}
    grads = {"a": {"kernel": np.array([3.0, 0])}, "b": {"kernel": np.array([-4.0])}}
    plain = optim.sgd(
        optim.piecewise_schedule(1.0),
        momentum=0.0,
        nesterov=False,
        weight_decay=0.5,
        decay="all",
        momentum_form=form,
    )
    for limit, factor in ((1.0, 0.2), (10.0, 1)):
        tx = optim.clipped(plain, limit)
        assert isinstance(tx, optim.RateScaledInside) == (form == "caffe")
        ours = stepped(tx, params, [grads])
        for name in params:
            expected = 1 - 0.5 - factor * grads[name]["kernel"]
            np.testing.assert_allclose(ours[name]["kernel"], expected, rtol=1e-6)


def test_linear_warm_up_and_decay():
    """Goyal et al. 2017: equal steps up to the rate; here also equal steps to 0."""
    warmup = {"warmup_steps": 4, "warmup_learning_rate": 0.2, "warmup_form": "linear"}
    up = [0.2, 0.4, 0.6, 0.8, 1.0]
    rate = optim.linear_schedule(1.0, total_steps=9, **warmup)
    found = [float(rate(jnp.int32(i))) for i in range(10)]
    assert found == pytest.approx([*up, 0.8, 0.6, 0.4, 0.2, 0.0], abs=1e-6)
    rate = optim.piecewise_schedule(1.0, drops=(6,), **warmup)
    found = [float(rate(jnp.int32(i))) for i in range(8)]
    assert found == pytest.approx([*up, 1.0, 0.1, 0.1])
    with pytest.raises(InputError, match="warmup_form must be"):
        optim.linear_schedule(1.0, total_steps=9, **{**warmup, "warmup_form": "x"})
