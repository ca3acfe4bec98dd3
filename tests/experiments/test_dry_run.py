# SPDX-License-Identifier: Apache-2.0
"""What can be run, and what a run would be, before it is one."""

import itertools
import re

import jax
import jax.numpy as jnp
import pytest
from driver import ROOT, arguments, in_process
from tiny import TINY

import configs
import rn_jax
from configs.default import Config
from experiments import dry_run
from experiments.training import feed
from rn_jax.analysis.cost import multiply_adds
from rn_jax.models import MODELS


def test_list_has_all_models_data_sets_and_configs(monkeypatch, capsys):
    assert in_process(monkeypatch, ["--list"]) == 0
    told = capsys.readouterr().out
    first = [line.split()[0] for line in told.splitlines() if line.startswith("  ")]
    datasets = ["cifar10", "cifar100", "svhn_cropped", "mnist", "fashion_mnist"]
    datasets += ["digits", "imagenet2012"]
    known = [*rn_jax.list_models(), *datasets]
    assert first[: len(known)] == known
    assert sorted(first[len(known) :]) == sorted(configs.names())
    assert "269,722  He et al. 2015" in told
    assert "ResNet-110 with stochastic depth (Huang et al. 2016, table 1)" in told
    of_paper = told.partition("\n Xie et al. 2017\n")[2].partition("\n Y")[0]
    kinds = {line.split()[0][:7] for line in of_paper.splitlines()}
    assert kinds == {"resnext", "resnet2"}
    assert re.search(r"resnet164 +tables 2 and 3: 5\.93 % on cifar10, 25\.16 %", told)


def test_help_names_the_configs(monkeypatch, capsys):
    assert in_process(monkeypatch, ["--help"]) == 0
    assert "resnet110_sd, " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "name",
    [
        *("resnet20", "preact_resnet110", "densenet_bc40_36", "highway50_mnist"),
        *("vgg15", "googlenet_2014", "plain20", "resnet110_exclusive_gating_6"),
    ],
)
def test_rows_are_the_whole_network(name):
    entry = MODELS[name]
    model = rn_jax.create_model(name)
    rows = dry_run.table(model, (entry.image_size, entry.image_size, entry.channels))
    assert sum(row["params"] for row in rows) == entry.params
    counted = multiply_adds(model, entry.image_size, entry.channels)
    assert sum(row["multiply_adds"] for row in rows) == counted
    assert rows[-1]["output"] == str(entry.num_classes)


def test_rows_of_a_residual_network():
    rows = dry_run.table(rn_jax.create_model("resnet110"), (32, 32, 3))
    assert [(row["name"], row["output"]) for row in rows] == [
        ("stem_conv", "32x32x16"),
        ("stem_bn", "32x32x16"),
        ("stage1/blocks x 18", "32x32x16"),
        ("stage2/first", "16x16x32"),
        ("stage2/blocks x 17", "16x16x32"),
        ("stage3/first", "8x8x64"),
        ("stage3/blocks x 17", "8x8x64"),
        ("head", "10"),
    ]
    # Two 3x3 convolutions of 16 channels in each of 18 blocks, at 32x32.
    assert rows[2]["multiply_adds"] == 18 * 2 * 32 * 32 * 9 * 16 * 16
    assert rows[2]["params"] == 18 * 2 * (9 * 16 * 16 + 2 * 16)


def test_memory_grows_with_the_batch_and_the_blocks():
    def kept(blocks, batch):
        model = rn_jax.create_model("resnet20", stage_sizes=(blocks, 1, 1))
        return dry_run.residual_bytes(model, (batch, 32, 32, 3))

    block = kept(5, 8) - kept(4, 8)
    # At least the outputs of its two convolutions, f32[8, 32, 32, 16].
    assert 2 * 4 * 8 * 32 * 32 * 16 <= block <= 4 * 4 * 8 * 32 * 32 * 16
    assert kept(6, 8) - kept(5, 8) == block
    assert kept(4, 16) == pytest.approx(2 * kept(4, 8), rel=0.02)


def test_memory_in_bfloat16_is_half():
    def kept(dtype):
        model = rn_jax.create_model("resnet20", dtype=dtype)
        return dry_run.residual_bytes(model, (64, 32, 32, 3))

    assert kept("bfloat16") == pytest.approx(kept("float32") / 2, rel=0.1)


def test_memory_counts_auxiliary_heads():
    model = rn_jax.create_model("googlenet_2014")
    assert model.aux_heads
    shape = (4, 224, 224, 3)
    with_heads = dry_run.residual_bytes(model, shape)
    without = dry_run.residual_bytes(model.clone(aux_heads=False), shape)
    # Of each head at least its fully connected layer's input, f32[4, 2048].
    assert with_heads - without >= 2 * 4 * 4 * 2048


@pytest.mark.usefixtures("optimized")
def test_memory_is_near_that_of_the_compiled_step():
    """XLA's own count: what is kept, and at its greatest what is in work beside it."""
    model = rn_jax.create_model("resnet20")
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda x: model.init({"params": jax.random.key(0)}, x, train=False), images
    )

    def loss(params, variables, images):
        both = {**variables, "params": params}
        logits, _ = model.apply(both, images, train=True, mutable=["batch_stats"])
        return logits.sum()

    step = jax.jit(jax.grad(loss)).lower(variables["params"], variables, images)
    temporary = step.compile().memory_analysis().temp_size_in_bytes
    kept = dry_run.residual_bytes(model, images.shape)
    assert 0.5 * temporary < kept < temporary


@pytest.mark.parametrize(
    "depth, share",
    [("None", 1), ("{'last_survival': 0.5}", 0.6875)],
    ids=["constant", "stochastic"],
)
def test_dry_run_prints_the_plan_and_stops(monkeypatch, capsys, tmp_path, depth, share):
    monkeypatch.setattr(dry_run, "convolution_rate", lambda devices, dtype: 1e7)
    options = ["--dry_run", f"--config.stochastic_depth={depth}"]
    argv = arguments(tmp_path / "run", *options)
    assert in_process(monkeypatch, argv) == 0
    told = capsys.readouterr().out
    assert "tiny on digits: 10 steps of 240 examples, 2.0 epochs." in told
    assert re.search(r"^Memory on each of 2 cpu devices: about \d", told, re.M)
    model = TINY.build(**TINY.arguments)
    work = multiply_adds(model, 8, 1)
    minutes = 6 * work * 2400 * share / 1e7 / 60
    assert f"Time: about {minutes:.1f} minutes for convolutions" in told
    assert not (tmp_path / "run").exists()


def test_dry_run_says_that_there_is_nothing_to_begin_from(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(dry_run, "convolution_rate", lambda devices, dtype: 1e12)
    (tmp_path / "x.pt").touch()
    for source, code in (("x.pt", 0), ("y.pt", 2), ("", 2)):
        options = ["--dry_run", f"--config.init_from={tmp_path}/{source}"]
        argv = arguments(tmp_path / "run", *options)
        assert in_process(monkeypatch, argv) == code
    told = capsys.readouterr().err
    assert f"There is no file {tmp_path}/y.pt." in told
    assert f"init_from {tmp_path} is not the folder of a run." in told


@pytest.mark.parametrize(
    "seconds, told",
    [(0.04, "0.0 seconds"), (119, "119.0 seconds"), (7000, "116.7 minutes")],
)
def test_times_in_words(seconds, told):
    assert dry_run.duration(seconds) == told


@pytest.mark.parametrize(
    "dataset, told",
    [
        ("cifar10", "351 steps of 128 examples, 1.0 epochs"),
        ("svhn_cropped", "4,674 steps of 128 examples, 1.0 epochs"),
        ("imagenet2012", "9,618 steps of 128 examples, 1.0 epochs"),
    ],
)
def test_dry_run_needs_no_data(monkeypatch, capsys, tmp_path, dataset, told):
    """The numbers of images are those of the papers, less 5,000, 6,000 and 50,000."""
    monkeypatch.setattr(dry_run, "convolution_rate", lambda devices, dtype: 1e12)
    argv = [f"--config={ROOT}/configs/resnet20.py:{dataset}", "--dry_run"]
    argv += ["--config.epochs=1", "--config.protocol=45k5k", "--config.num_devices=2"]
    argv += [f"--config.data_dir={tmp_path}"]
    if dataset == "imagenet2012":
        argv += ["--config.image_size=32", "--config.normalization=imagenet"]
    assert in_process(monkeypatch, argv) == 0
    assert told in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", ["full", "45k5k"])
def test_examples_are_those_trained_on(protocol):
    config = Config(dataset="digits", protocol=protocol)
    read = feed.make_feed(config, host_index=0, num_hosts=1)
    assert feed.count_train(config) == read.num_train


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rate_is_of_operations_done(dtype, monkeypatch):
    """By a clock that says that each of the five takes half a second."""
    ticks = itertools.count()
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: next(ticks) / 2)
    rate = dry_run.convolution_rate(jax.devices()[:1], jnp.dtype(dtype))
    assert rate == 2 * 2 * 16 * 32 * 32 * 64 * 64 * 9
