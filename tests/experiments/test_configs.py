# SPDX-License-Identifier: Apache-2.0
"""Every config: the fields of default.py and no others, and the recipe of its paper."""

import dataclasses
import importlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from configs import default
from experiments.config import make_config
from experiments.training import feed, setup
from experiments.training.network import make_network
from experiments.training.schedule import count_steps, make_schedule
from rn_jax import InputError, create_model, data
from rn_jax.models import MODELS
from rn_jax.stochastic_depth import (
    StochasticDepth,
    expected_open_blocks,
    survival_probs,
)

FOLDER = configs.FOLDER
NAMES = configs.names()
load = configs.get_config


def made(name, *args, **fields):
    """The typed config of a name, with some fields otherwise."""
    return dataclasses.replace(make_config(load(name, *args)), **fields)


# On 8 pixels all networks, on 32 those of the first papers: tracing takes time.
CASES = [
    (dataset, name)
    for dataset in ("cifar10", "digits")
    for name in NAMES
    if dataset == "digits"
    or load(name).paper in ("He et al. 2015", "Huang et al. 2016")
]
# Tracing layer by layer takes seconds: in `make test-all`.
DEEP = {"densenet40_12", "densenet_bc100_12", "pyramidnet110_48"} ^ {
    n for n in NAMES if n.startswith(("densenet", "pyramidnet"))
}


TRACED: list = []  # many rows differ in the recipe alone


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if case[1] in DEEP else [])
        for case in CASES
    ],
)
def test_config_is_complete_and_makes_a_network(name, dataset):
    assert set(load(name, dataset)) == set(default.FIELDS)
    config = made(name, dataset)
    assert config.dataset == dataset
    setup.check(config)
    network = config.model, repr(config.model_kwargs), data.get_spec(dataset)
    if network in TRACED:
        return
    model = create_model(config.model, **config.model_kwargs)
    images = jnp.zeros((2, *data.get_spec(dataset).image_shape))
    shapes = jax.eval_shape(
        lambda: model.init({"params": jax.random.key(0)}, images, train=False)
    )
    assert "head" in shapes["params"]
    TRACED.append(network)


def test_a_config_that_is_changed_leaves_its_row_as_it_was():
    before = load("resnet152_svhn_sd").to_dict()
    config = load("resnet152_svhn_sd")
    config.stochastic_depth["last_survival"] = 0.9
    config.published_error_percent.svhn_cropped = 0.9
    assert load("resnet152_svhn_sd").to_dict() == before
    load("wrn28_10_dropout").model_kwargs.block_kwargs.dropout = 0.9
    assert load("wrn28_10_dropout").model_kwargs.block_kwargs.dropout == 0.3


def test_a_row_can_differ_on_digits_alone():
    assert made("highway10_mnist_open", "digits").epochs == 100
    assert made("highway50_mnist", "digits").epochs == 30
    assert made("highway10_mnist_open", "mnist").epochs == 400


def test_names_are_those_of_rows_and_of_files_with_a_network():
    assert len(NAMES) == len(set(NAMES)) == 170
    recipes = {file.stem for file in FOLDER.glob("[!_]*.py")}
    files = {"resnet110", "resnet110_sd", "vgg15"}
    assert recipes & set(NAMES) == files
    for name in recipes - files:
        assert load(name).model is None
    with pytest.raises(InputError, match=r"Unknown config 'resnet21'; similar: .*t20"):
        load("resnet21")


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("[!_]*.py")))
def test_header_has_the_command(name):
    header = (FOLDER / f"{name}.py").read_text().split('"""')[1]
    known = re.search(r"python -m experiments.run --config=configs/(\w+).py", header)
    if known is None:
        assert "no network" in header or "without a network" in header
    else:
        module = importlib.import_module(f"configs.{name}")
        assert known[1] in [name, *getattr(module, "ROWS", [])]


@pytest.mark.parametrize("name", NAMES)
def test_published_errors_are_of_the_data_set_of_the_paper(name):
    config = load(name)
    assert config.dataset in ("cifar10", "imagenet2012", "mnist", "svhn_cropped")
    if published := config.published_error_percent.to_dict():
        assert config.dataset in published
    assert configs.where(name)


def test_the_failing_networks_are_expected_to_fail():
    failing = {name for name in NAMES if load(name).expected_to_fail}
    assert failing == {
        *("resnet110_scaling_0_1", "resnet110_scaling_05_1"),
        *("resnet110_exclusive_gating_0", "resnet110_dropout_shortcut"),
    }
    assert not any(load(name).published_error_percent for name in failing)


def test_every_field_of_default_has_a_comment():
    text = (FOLDER / "default.py").read_text()
    for name in default.FIELDS:
        [line] = re.findall(rf"(?m)^    {name}: .*$", text)
        assert "  # " in line, line


def test_fields_of_default_have_their_type_choices_and_limits():
    """In the annotation, and the default fits it."""
    make_config(vars(default.Config()))
    fields = default.FIELDS
    assert fields["epochs"][:4] == (int, True, None, default.Range(1))
    assert fields["batch_size"].limits == default.Range(1, 2**16)
    assert fields["normalization"].choices == data.NORMALIZATIONS
    assert fields["protocol"].choices == ("full", "45k5k")
    assert fields["matmul_precision"].choices[:2] == (None, "bfloat16")
    assert fields["learning_rate"][:3] == (float, False, None)
    assert fields["lr_drops"].entry == default.Field(float, limits=default.Range(0))
    assert (fields["lr_drops"].length, fields["train_scales"].length) == (None, 2)
    assert fields["published_error_percent"].entry.limits == default.Range(0, 100)
    assert fields["model_kwargs"].entry is None
    assert {field.kind.__name__ for field in fields.values()} == {
        *("bool", "int", "float", "str", "tuple", "Mapping")
    }


def test_no_row_repeats_what_it_starts_from():
    """A field with the value that the recipe has already says nothing."""
    for name, (module, row) in configs.index().items():
        for field, value in row.fields.items() if row else ():
            if field == "model":
                assert value != name
            else:
                recipe = (row.recipe or module.get_config)()
                assert value == {} or recipe[field] != value, (name, field)


def schedule_of(name, steps_per_epoch, **fields):
    config = made(name, **fields)
    total = count_steps(config, steps_per_epoch)
    return make_schedule(config, steps_per_epoch, total), total


def test_recipe_of_he_2015():
    """papers.md's source: batch 128, 0.1, divided at 32k and 48k, 64k iterations."""
    config = load("resnet56")
    assert config.batch_size == 128
    assert optimiser_of(config) == ("caffe", 0.9, False, 1e-4, "kernels")
    schedule, total = schedule_of("resnet56", steps_per_epoch=390)
    assert total == 64_000
    rates = [float(schedule(s)) for s in (0, 31_999, 32_000, 48_000)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_resnet110_of_he_2015_warms_up_until_it_learns():
    """At 0.01 until the training error is below 80 %."""
    config = load("resnet110_he2015")
    assert (config.warmup_until_error, config.warmup_learning_rate) == (80, 0.01)
    schedule, _ = schedule_of("resnet110_he2015", steps_per_epoch=390)
    rates = [float(schedule(s)) for s in (0, 32_000)]
    assert rates == pytest.approx([0.1, 0.01])


def optimiser_of(config):
    form, nesterov = config.momentum_form, config.nesterov
    return form, config.momentum, nesterov, config.weight_decay, config.weight_decay_on


# Where a paper was trained in Torch; the others in Caffe, or by its formula.
TORCH = {
    *("Huang et al. 2016", "Huang et al. 2017", "Xie et al. 2017"),
    *("Zagoruyko and Komodakis 2016", "Hu et al. 2017"),
    *("Han et al. 2017", "Yamada et al. 2018", "Zhang et al. 2016"),
}


def test_form_of_the_momentum_is_that_of_the_papers_code():
    for name in NAMES:
        config = load(name)
        # He et al. 2016 trained in Caffe, but on ImageNet we have Torch's recipe.
        paper = config.paper.removeprefix("after ")
        by_torch = paper in TORCH or name in rows_of("preact_resnet152")
        assert config.momentum_form == ("torch" if by_torch else "caffe"), name


def rows_of(name):
    """The rows that are trained by the recipe of this one."""
    module, row = configs.index()[name]
    same = [(n, r) for n, (m, r) in configs.index().items() if m is module and r]
    return [n for n, other in same if other.recipe is row.recipe]


@pytest.mark.parametrize(
    ("base", "number"),
    [
        ("resnet164", 24),
        ("preact_resnet152", 3),
        ("resnext29_1x64d", 7),
        ("resnext50_1x64d", 11),
        ("wrn16_8", 4),
        ("highway19", 4),
        ("plain18_max_pool", 2),
        ("densenet40_12", 14),
        ("densenet121", 5),
        ("pyramidnet110_48", 12),
        ("fractalnet20", 7),
        ("vgg16", 4),
    ],
)
def test_rows_of_one_recipe_differ_in_the_network_alone(base, number):
    rows = rows_of(base)
    assert len(rows) == number
    network = {"model", "model_kwargs", "published_error_percent", "expected_to_fail"}
    for name in rows:
        one, two = load(base), load(name)
        augment = {"augment"} if name.endswith("_not_augmented") else set()
        assert {n for n in one if one[n] != two[n]} <= network | augment


def test_recipe_of_he_2015_on_imagenet():
    """Batch 256, 0.1, divided by 10 at plateaus, 600k iterations; section 3.4."""
    for name in ("plain34", "resnet18", "resnet34_c", "resnet152"):
        config = load(name)
        assert (config.dataset, config.batch_size) == ("imagenet2012", 256)
        assert optimiser_of(config) == ("caffe", 0.9, False, 1e-4, "kernels")
        assert config.normalization == "mean_image"
        assert (config.train_crop, config.train_scales) == ("scale", (256, 480))
        assert (config.pca_noise, config.color_jitter) == (0.1, 0)
        assert (config.lr_schedule, config.protocol) == ("plateau", "45k5k")
        assert config.lr_factor == 0.1
        schedule, total = schedule_of(name, steps_per_epoch=5004)
        assert total == 600_000
        rates = [float(schedule(s)) for s in (0, 599_999)]
        assert rates == pytest.approx([0.1, 0.1])


def assert_as_in_fb_resnet_torch(config):
    """Its README and code, as papers.md's source has them."""
    assert (config.normalization, config.protocol) == ("imagenet", "full")
    assert (config.color_jitter, config.pca_noise) == (0.4, 0.1)
    assert optimiser_of(config) == ("torch", 0.9, True, 1e-4, "all")


def test_recipe_of_stochastic_depth_on_imagenet():
    """fb.resnet.torch's with batches of 128, then 30 epochs more at 1e-4."""
    config = load("resnet152_imagenet_sd")
    assert_as_in_fb_resnet_torch(config)
    assert (config.batch_size, config.train_crop) == (128, "area")
    assert config.stochastic_depth["last_survival"] == 0.5
    schedule, total = schedule_of("resnet152_imagenet_sd", steps_per_epoch=10_009)
    assert total == 120 * 10_009
    rates = [float(schedule(e * 10_009)) for e in (29, 30, 60, 90, 119)]
    assert rates == pytest.approx([0.1, 0.01, 0.001, 0.0001, 0.0001])


def test_resnets_on_imagenet_are_those_of_the_paper():
    """Its tables' options for shortcuts; the stride on the first 1x1 convolution."""
    shortcuts = {n: load(n).model_kwargs.get("shortcut") for n in NAMES}
    assert [shortcuts[n] for n in ("resnet18", "resnet34_a")] == ["A", "A"]
    assert [shortcuts[n] for n in ("resnet34_b", "resnet34_c")] == [None, "C"]
    assert MODELS["resnet34"].arguments["shortcut"] == "B"
    for name in ("resnet50", "resnet101", "resnet152"):
        assert load(name).model_kwargs.block_kwargs.stride_on == "1x1"


def test_recipe_of_he_2016():
    """That of 2015 on CIFAR, with 400 iterations at 0.01 in every run."""
    base, original = load("he2016"), load("resnet110_he2015")
    differ = {name for name in base if base[name] != original[name]}
    warmup = {"warmup", "warmup_until_error"}  # by iterations, or until it learns
    assert differ == {"model", "paper", "published_error_percent"} | warmup
    schedule, total = schedule_of("preact_resnet164", steps_per_epoch=390)
    assert total == 64_000
    rates = [float(schedule(s)) for s in (0, 399, 400, 31_999, 32_000, 48_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.001])


def test_recipe_of_he_2016_on_imagenet():
    """No warm-up, divided at epochs 30 and 60, the rest as in the Torch codes."""
    config = load("preact_resnet200")
    assert_as_in_fb_resnet_torch(config)
    assert (config.batch_size, config.warmup, config.train_crop) == (256, 0, "scale")
    assert (config.eval_resize, config.eval_size) == (320, 320)
    schedule, total = schedule_of("preact_resnet200", steps_per_epoch=5004)
    assert total == 90 * 5004
    rates = [float(schedule(e * 5004)) for e in (0, 29, 30, 60)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_recipe_of_xie_2017_on_cifar():
    """300 epochs, divided at 150 and 225; all examples; decay 5e-4 on everything."""
    config = load("resnext29_16x64d")
    assert (config.batch_size, config.protocol) == (128, "full")
    assert config.normalization == "channel"
    assert optimiser_of(config) == ("torch", 0.9, True, 5e-4, "all")
    schedule, total = schedule_of("resnext29_16x64d", steps_per_epoch=390)
    assert total == 300 * 390
    rates = [float(schedule(e * 390)) for e in (0, 149, 150, 224, 225)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_recipe_of_xie_2017_on_imagenet():
    """Divided three times: 100 epochs, every 30."""
    config = load("resnext101_64x4d")
    assert_as_in_fb_resnet_torch(config)
    assert (config.batch_size, config.train_crop) == (256, "area")
    schedule, total = schedule_of("resnext101_64x4d", steps_per_epoch=5004)
    assert total == 100 * 5004
    rates = [float(schedule(e * 5004)) for e in (0, 29, 30, 60, 90)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.0001])


def test_recipe_of_hu_2017():
    """Batches of 1,024, 0.6 divided every 30 of 100 epochs."""
    assert set(rows_of("se_resnet50")) == {f"se_resnet{n}" for n in (50, 101, 152)}
    config = load("se_resnet101")
    assert config.model_kwargs.block_kwargs.stride_on == "1x1"
    assert_as_in_fb_resnet_torch(config)
    assert (config.batch_size, config.train_crop) == (1024, "area")
    schedule, total = schedule_of("se_resnet101", steps_per_epoch=1251)
    assert total == 100 * 1251
    rates = [float(schedule(e * 1251)) for e in (0, 29, 30, 60, 90)]
    assert rates == pytest.approx([0.6, 0.6, 0.06, 0.006, 0.0006])


def test_recipe_of_singh_2016():
    """256 epochs, divided at 192 and 224."""
    config = load("swapout32_w4")
    assert (config.batch_size, config.normalization) == (128, "channel")
    assert optimiser_of(config) == ("caffe", 0.9, False, 1e-4, "kernels")
    schedule, total = schedule_of("swapout32_w4", steps_per_epoch=390)
    assert total == 256 * 390
    rates = [float(schedule(e * 390)) for e in (0, 191, 192, 224)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_recipe_of_zagoruyko_2016():
    """200 epochs, times 0.2 at 60, 120 and 160; decay 5e-4 on everything."""
    config = load("wrn28_10_dropout")
    assert config.model_kwargs.block_kwargs.dropout == 0.3
    assert (config.batch_size, config.normalization) == (128, "channel")
    assert optimiser_of(config) == ("torch", 0.9, True, 5e-4, "all")
    schedule, total = schedule_of("wrn28_10_dropout", steps_per_epoch=390)
    assert total == 200 * 390
    rates = [float(schedule(e * 390)) for e in (0, 59, 60, 120, 160)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.004, 0.0008])


def test_recipe_of_huang_2017():
    """300 epochs of batches of 64, divided at 50 and 75 %; ImageNet as in Torch."""
    config = load("densenet_bc190_40")
    assert (config.batch_size, config.protocol) == (64, "full")
    assert config.normalization == "channel"
    assert optimiser_of(config) == ("torch", 0.9, True, 1e-4, "all")
    schedule, total = schedule_of("densenet_bc190_40", steps_per_epoch=781)
    assert total == 300 * 781
    rates = [float(schedule(e * 781)) for e in (0, 149, 150, 224, 225)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    svhn = load("densenet100_24", "svhn_cropped")  # section 4.2
    assert (svhn.epochs, svhn.normalization, svhn.protocol) == (40, "unit", "45k5k")
    assert (svhn.augment, svhn.model_kwargs.dropout) == (False, 0.2)
    config = load("densenet201")
    assert_as_in_fb_resnet_torch(config)
    assert (config.batch_size, config.train_crop) == (256, "area")
    schedule, total = schedule_of("densenet201", steps_per_epoch=5004)
    assert total == 90 * 5004
    rates = [float(schedule(e * 5004)) for e in (0, 29, 30, 60)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_recipe_of_han_2017():
    """300 epochs of batches of 128, divided at 150 and 225; 0.5 on CIFAR-100."""
    for dataset, rate in (("cifar10", 0.1), ("cifar100", 0.5)):
        config = load("pyramidnet272_200", dataset)
        assert (config.batch_size, config.protocol) == (128, "full")
        assert config.normalization == "channel"
        assert optimiser_of(config) == ("torch", 0.9, True, 1e-4, "all")
        steps, total = 390, 300 * 390
        schedule = make_schedule(make_config(config), steps, total)
        rates = [float(schedule(e * steps)) for e in (0, 149, 150, 224, 225)]
        factors = np.array([1, 1, 0.1, 0.1, 0.01])
        np.testing.assert_allclose(rates, rate * factors, rtol=1e-6)


def test_recipe_of_zhang_2016():
    """500 epochs, divided at 250 and 375; on SVHN 50, at 30 and 35; p_L = 0.5."""
    for dataset, total, drops in (
        ("cifar10", 500, (250, 375)),
        ("svhn_cropped", 50, (30, 35)),
    ):
        config = load("ror3_wrn58_4_sd", dataset)
        assert (config.batch_size, config.protocol) == (128, "full")
        assert config.augment == (dataset == "cifar10")
        assert config.stochastic_depth == {"last_survival": 0.5}
        assert optimiser_of(config) == ("torch", 0.9, True, 1e-4, "all")
        schedule = make_schedule(make_config(config), 10, total * 10)
        rates = [float(schedule(10 * e)) for e in (0, drops[0] - 1, *drops)]
        assert config.epochs == total
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_recipe_of_yamada_2018():
    """That of PyramidNet with a rate of 0.5, and p_L = 0.5."""
    for dataset in ("cifar10", "cifar100"):
        config = load("pyramidnet110_270_shake", dataset)
        other = load("pyramidnet110_270", dataset)
        assert config.learning_rate == 0.5
        assert config.stochastic_depth == {"last_survival": 0.5, "shake": "example"}
        assert {n for n in config if config[n] != other[n]} <= {
            *("learning_rate", "stochastic_depth", "paper"),
            "published_error_percent",
        }


def test_recipe_of_larsson_2017():
    """0.02, divided whenever half of the remaining 400 epochs are over; batch 100."""
    config = load("fractalnet20_drop_path")
    assert config.model_kwargs.drop_path == 0.15
    assert tuple(config.model_kwargs.dropout) == (0, 0.1, 0.2, 0.3, 0.4)
    assert (config.batch_size, config.bias_rate) == (100, 2)
    assert optimiser_of(config) == ("caffe", 0.9, False, 0, "kernels")
    schedule, total = schedule_of("fractalnet20_drop_path", steps_per_epoch=500)
    assert total == 400 * 500
    rates = [float(schedule(e * 500)) for e in (199, 200, 300, 350, 374, 375)]
    assert rates == pytest.approx([0.02, 2e-3, 2e-4, 2e-5, 2e-5, 2e-6])


def test_recipe_of_szegedy_2017():
    """0.045, times 0.94 every two epochs; crops of 299 pixels; averaged weights."""
    config = load("inception_resnet_v2")
    assert config.ema_decay == 0.9999
    assert (config.image_size, config.eval_size) == (299, 299)
    assert optimiser_of(config) == ("caffe", 0.9, False, 4e-5, "kernels")
    schedule, total = schedule_of("inception_resnet_v2", steps_per_epoch=5004)
    assert total == 200 * 5004
    found = {e: float(schedule(e * 5004)) for e in (0, 1, 2, 3, 4, 199)}
    power = {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 199: 99}
    assert found == pytest.approx({e: 0.045 * 0.94**n for e, n in power.items()})


def test_recipe_of_srivastava_2015():
    """The authors' solver: 0.025, divided at 100k, 150k and 175k of 200k; batch 100."""
    config = load("highway19")
    assert (config.batch_size, config.augment_pad) == (100, 8)
    assert (config.normalization, config.bias_rate) == ("contrast", 2)
    assert optimiser_of(config) == ("caffe", 0.9, True, 1e-3, "kernels")
    schedule, total = schedule_of("highway19", steps_per_epoch=500)
    assert total == 200_000
    rates = [float(schedule(s)) for s in (0, 99_999, 100_000, 150_000, 175_000)]
    assert rates == pytest.approx([0.025, 0.025, 0.0025, 0.00025, 0.000025])


@pytest.mark.parametrize(
    ("name", "batch_size", "decay", "steps", "crop", "rates"),
    [
        ("vgg19", 256, 5e-4, 370_000, "scale", "plateau"),
        ("alexnet_2012", 128, 5e-4, 90 * 5004, "scale", "plateau"),
        (
            "googlenet_2014",
            *(32, 2e-4, 250 * 5004, "area"),
            {7: 1e-2, 8: 0.96e-2, 16: 0.9216e-2, 249: 0.96**31 * 1e-2},
        ),
    ],
)
def test_recipes_of_2012_to_2014(name, batch_size, decay, steps, crop, rates):
    """0.01, momentum 0.9; divided by 10 at plateaus, or by 4 % every 8 epochs."""
    config = load(name)
    assert (config.dataset, config.batch_size) == ("imagenet2012", batch_size)
    assert optimiser_of(config) == ("caffe", 0.9, False, decay, "kernels")
    averaged = 0.9999 if name == "googlenet_2014" else None  # section 6, Polyak
    assert config.ema_decay == averaged
    schedule, total = schedule_of(name, steps_per_epoch=5004)
    assert total == steps
    assert config.train_crop == crop
    # AlexNet subtracts the mean image, VGG the mean colour.
    mean = "mean_image" if name == "alexnet_2012" else "imagenet_mean"
    assert (config.normalization, config.pca_noise) == (mean, 0.1)
    if rates == "plateau":
        assert (config.lr_schedule, config.train_scales) == (rates, (256, 256))
        rates = {0: 0.01, 70: 0.01}
    found = {epoch: float(schedule(epoch * 5004)) for epoch in rates}
    assert found == pytest.approx(rates)


def test_recipe_of_huang_2016():
    """500 epochs, 0.1, divided after 250 and 375; Nesterov; decay on everything."""
    config = load("resnet110_sd")
    assert config.stochastic_depth["last_survival"] == 0.5
    assert config.model_kwargs.shortcut == "A_pooled"
    assert config.protocol == "45k5k"
    assert config.batch_size == 128
    assert optimiser_of(config) == ("torch", 0.9, True, 1e-4, "all")
    assert (config.normalization, config.augment) == ("mean_image", True)
    schedule, total = schedule_of("resnet110_sd", steps_per_epoch=351)
    assert total == 500 * 351
    rates = [float(schedule(e * 351)) for e in (0, 249, 250, 374, 375)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_constant_depth_twin_differs_in_depth_alone():
    one, two = load("resnet110"), load("resnet110_sd")
    differ = {name for name in one if one[name] != two[name]}
    assert differ == {"stochastic_depth", "published_error_percent"}


def test_dropout_and_stochastic_depth_have_the_same_expected_depth():
    """40.25 of 54 blocks are open, or their units kept; or the network has 40."""
    for name in ("resnet110_sd", "resnet110_sd_uniform"):
        settings = StochasticDepth(**load(name).stochastic_depth)
        assert float(expected_open_blocks(settings, 54)) == pytest.approx(40.25)
    rate = load("resnet110_dropout").model_kwargs.block_kwargs.dropout
    assert 54 * (1 - rate) == pytest.approx(40.25)
    sizes = load("resnet82").model_kwargs.stage_sizes
    probs = survival_probs(StochasticDepth(last_survival=0.5), 54).reshape(3, 18)
    sums = np.cumsum(probs.sum(axis=1))
    assert np.cumsum(sizes).tolist() == np.round(sums).tolist() == [16, 30, 40]

    constant = load("resnet110")
    network = {"model", "model_kwargs", "stochastic_depth", "published_error_percent"}
    for name in ("resnet110_sd_uniform", "resnet110_dropout", "resnet82"):
        config = load(name)
        assert {n for n in config if config[n] != constant[n]} <= network
        model = create_model(config.model, **config.model_kwargs)
        assert model.shortcut == "A_pooled"


@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_steps_of_bounded_size_are_all_that_differs(dataset):
    """From plain-110 by the recipe of He et al. 2015; ResNet-110 in the network alone.

    AdamW has its own rate, on digits too.
    """
    usual, about = load("plain110", dataset), {"paper", "published_error_percent"}
    for name, fields in (
        ("clipped", {"clip_norm": 1.0}),
        ("adamw", {"optimizer": "adamw", "learning_rate": 0.001}),
    ):
        plain, residual = (load(f"{n}110_{name}", dataset) for n in ("plain", "resnet"))
        assert (plain.model, residual.model) == ("plain110", "resnet110")
        assert {n for n in plain if plain[n] != residual[n]} == {"model"}
        differ = {n: plain[n] for n in plain if plain[n] != usual[n]}
        assert {n: v for n, v in differ.items() if n not in about} == fields


def test_resnet1202_with_stochastic_depth_warms_up_for_ten_epochs():
    schedule, total = schedule_of("resnet1202_sd", steps_per_epoch=351)
    assert total == 300 * 351
    rates = [float(schedule(e * 351)) for e in (0, 9, 10, 150, 225)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.01, 0.001])


def test_svhn_recipe():
    schedule, total = schedule_of("resnet152_svhn_sd", steps_per_epoch=100)
    assert total == 5000
    rates = [float(schedule(e * 100)) for e in (29, 30, 34, 35)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001])
    one, two = load("resnet152_svhn"), load("resnet152_svhn_sd")
    differ = {name for name in one if one[name] != two[name]}
    assert differ == {"stochastic_depth", "published_error_percent"}
    assert one.augment is False and one.dataset == "svhn_cropped"
    assert (one.batch_size, one.protocol, one.eval_every_steps) == (128, "45k5k", 200)


def test_short_paths_begin_at_the_first_drop():
    whole, short = load("preact_resnet110"), load("preact_resnet110_short_paths")
    differ = {name for name in whole if whole[name] != short[name]}
    assert differ == {
        "stochastic_depth",
        "stochastic_depth_from_epoch",
        "paper",
        "published_error_percent",
    }
    assert short.stochastic_depth["num_open"] == 23
    steps = short.stochastic_depth_from_epoch * (50_000 // 128)
    assert abs(steps - short.lr_drops[0]) < 50_000 // 128


@pytest.mark.parametrize("name", ["alexnet_2012", "googlenet_2014", "resnet34_a"])
def test_imagenets_networks_have_their_small_stem_on_small_images(name):
    assert "stem" not in load(name).model_kwargs
    small = load(name, "cifar10").model_kwargs
    assert small["stem"] == "small"
    assert {**load(name).model_kwargs, "stem": "small"} == dict(small)


def test_vgg15_learns_digits_without_dropout_in_its_convolutions():
    """30 epochs are too few to learn through the dropout that it has on CIFAR."""
    recipes = {name: made("vgg15", name) for name in ("cifar10", "digits")}
    usual = made("resnet110", "digits").learning_rate
    assert recipes["digits"].learning_rate > usual
    for name, config in recipes.items():
        model, shape = make_network(config)
        # Without the fully connected layers, whose dropout stays.
        model = model.copy(features=(4,) * 5, num_classes=None)
        images = np.random.default_rng(0).normal(size=(8, *shape)).astype("float32")
        variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
        run = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
        one, other = (
            run(variables, images, rngs={"dropout": jax.random.key(seed)})[0]
            for seed in (1, 2)
        )
        assert np.array_equal(one, other) == (name == "digits")


ALL_DATASETS = [*data.DATASETS, "imagenet2012"]


@pytest.mark.parametrize("dataset", ALL_DATASETS)
def test_every_recipe_has_a_sensible_length_on_every_data_set(dataset):
    """At least ten epochs, if not short, and at most what its network can be given."""
    limits = {"digits": 30, "svhn_cropped": 50, "imagenet2012": 250}
    for name in NAMES:
        most = limits.get(dataset, 500)
        if dataset == "digits" and name.startswith("highway10"):
            most = 100
        config = made(name, dataset)
        setup.check(config)
        steps_per_epoch = feed.count_train(config) // config.batch_size
        total = count_steps(config, steps_per_epoch)
        least = 0.5 if name.endswith("_short") else 10
        assert least <= total / steps_per_epoch <= most + 0.01, name
        schedule = make_schedule(config, steps_per_epoch, total)
        own = load(name)
        if config.lr_schedule == "piecewise" == own.lr_schedule:
            # All drops of the recipe fall into the run.
            assert len(config.lr_drops) == len(own.lr_drops) or dataset == "digits"
            factor = config.lr_factor ** len(config.lr_drops)
            last = config.learning_rate * factor
            assert float(schedule(total - 1)) == pytest.approx(last), name
        begins = config.stochastic_depth_from_epoch * steps_per_epoch
        assert begins < total, name


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_recipes_of_imagenet_keep_their_epochs_on_small_data_sets(dataset):
    """600,000 steps of 256 are 120 epochs of ImageNet, 370,000 are 74."""
    epochs = {"plain34": 120, "resnet152": 120, "vgg16": 74, "vgg11": 74}
    epochs |= {"alexnet_2012": 90, "googlenet_2014": 250, "densenet121": 90}
    for name, expected in epochs.items():
        config = load(name, dataset)
        assert (config.epochs, config.steps) == (expected, None), name


def test_lengths_of_recipes_on_large_data_sets():
    """As long as it is where it can be; else its drops move with its length."""
    for name, dataset, epochs, drops in (
        ("resnet20", "svhn_cropped", 13.56, [0.5, 0.75]),
        ("resnet20", "imagenet2012", 30, [0.5, 0.75]),
        ("resnet110_sd", "svhn_cropped", 50, [0.5, 0.75]),
        ("wrn28_10", "svhn_cropped", 50, [0.3, 0.6, 0.8]),
        ("wrn28_10", "imagenet2012", 200, [0.3, 0.6, 0.8]),
        ("resnext50_32x4d", "svhn_cropped", 50, [0.3, 0.6, 0.9]),
        ("resnet152_imagenet_sd", "svhn_cropped", 50, [0.25, 0.5, 0.75]),
    ):
        config = made(name, dataset)
        steps_per_epoch = feed.count_train(config) // config.batch_size
        total = count_steps(config, steps_per_epoch)
        assert total / steps_per_epoch == pytest.approx(epochs, abs=0.01), name
        schedule = make_schedule(config, steps_per_epoch, total)
        rate, factor = config.learning_rate, config.lr_factor
        for number, drop in enumerate(drops):
            for share, expected in ((drop - 0.01, number), (drop + 0.01, number + 1)):
                found = float(schedule(int(share * total)))
                assert found == pytest.approx(rate * factor**expected), (name, drop)


@pytest.mark.parametrize("dataset", ALL_DATASETS)
def test_short_paths_begin_at_the_first_drop_of_every_data_set(dataset):
    config = made("preact_resnet110_short_paths", dataset)
    steps_per_epoch = feed.count_train(config) // config.batch_size
    total = count_steps(config, steps_per_epoch)
    unit = {"steps": 1, "fraction": total}[config.lr_drops_unit]
    begins = config.stochastic_depth_from_epoch * steps_per_epoch
    assert abs(begins - config.lr_drops[0] * unit) < steps_per_epoch


def test_biases_of_fixup_have_a_tenth_of_the_rate():
    rates = {name: load(name).bias_rate for name in rows_of("resnet110_fixup")}
    assert rates.pop("resnet110_fixup") == 0.1 and set(rates.values()) == {1.0}


def differing(first, second):
    return {n for n in vars(first) if getattr(first, n) != getattr(second, n)}


def test_short_cifar_compares_networks_by_one_recipe():
    first, *others = (
        made(f"{kind}{depth}_short")
        for kind in ("plain", "resnet")
        for depth in (20, 56)
    )
    assert first.learning_rate / first.batch_size == made("plain20").learning_rate / 128
    assert all(differing(first, other) == {"model"} for other in others)


def test_few_images_compares_constant_and_stochastic_depth_by_one_recipe():
    constant, dropped = made("resnet32_few_images"), made("resnet32_sd_few_images")
    assert not constant.augment and constant.train_examples == 5000
    assert (constant.epochs, constant.protocol) == (20, "full")
    assert constant.model_kwargs == made("resnet110_sd").model_kwargs
    assert (
        constant.learning_rate / constant.batch_size
        == made("plain20").learning_rate / 128
    )
    assert differing(constant, dropped) == {"stochastic_depth"}
    assert made("resnet32_few_images", "digits").train_examples is None
