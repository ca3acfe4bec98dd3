# SPDX-License-Identifier: Apache-2.0
"""The training command: its config, its folder, and bad input."""

import re

import driver
import fake
import jax
import numpy as np
import pytest
from driver import arguments, in_process

from experiments.training import trained
from rn_jax.models import MODELS


def test_recipe_follows_a_data_set_that_is_overridden(tmp_path, monkeypatch):
    configs = fake.use(monkeypatch)
    argv = [f"--config={driver.ROOT}/configs/resnet110_sd.py"]
    argv += ["--config.dataset=digits", f"--workdir={tmp_path / 'w'}"]
    assert in_process(monkeypatch, argv) == 0
    assert configs[0].dataset == "digits"
    assert (configs[0].epochs, configs[0].learning_rate) == (30, 0.01)


def test_a_length_in_steps_where_the_config_has_one_in_epochs(tmp_path, monkeypatch):
    configs = fake.use(monkeypatch)
    argv = arguments(tmp_path / "w", "--config.steps=7", config="resnet110_sd")
    assert in_process(monkeypatch, argv) == 0
    assert configs[0].steps == 7


BAD_INPUT = {
    "model": (["--config.model=resnet21"], r"Unknown model 'resnet21'; similar: .*20"),
    "model field": (
        ["--config.model_kwargs={'shortcat': 'B'}"],
        r"Unknown field of tiny 'shortcat'; similar: shortcut",
    ),
    "shortcut": (
        ["--config.model_kwargs={'shortcut': 'D'}"],
        r"shortcut must be one of A, .* not 'D'",
    ),
    "field": (["--config.epoch=3"], r"no field 'epoch': Did you mean \"epochs\""),
    "field, far": (["--config.xyzzy=3"], r"no field 'xyzzy': .*configs/default.py"),
    "entry of a dict": (
        ["--config.model_kwargs.shortcat=B"],
        r"Unknown field of tiny 'shortcat'; similar: shortcut",
    ),
    "entry of nothing": (
        ["--config.stochastic_depth.survival=0.5"],
        r"Unknown field of stochastic_depth 'survival'",
    ),
    "entry of no dict": (
        ["--config.data_dir.last=0.5"],
        r"data_dir.last cannot be set: data_dir is not a dict",
    ),
    "entry of a number": (
        ["--config.epochs.last=0.5"],
        r"epochs.last cannot be set: epochs is not a dict",
    ),
    "derived": (["--config.model_kwargs={'num_classes': 5}"], r"cannot set num_class"),
    "type in a dict": (
        ["--config.stochastic_depth={'last_survival': 'a'}"],
        r"last_survival, .* must be in \(0, 1\], not 'a'\.",
    ),
    "combination": (
        ["--config.stochastic_depth={'preset': 'timm', 'closed_statistics': 'frozen'}"],
        r"cannot be \"frozen\"",
    ),
    "drops' type": (["--config.lr_drops=('a','b')"], r"lr_drops.0 must be a number"),
    "seed": (["--config.seed=4294967296"], r"seed must be below"),
    "nested field": (
        ["--config.stochastic_depth={'survival': 0.5}"],
        r"Unknown field of stochastic_depth 'survival'; similar: last_survival",
    ),
    "type": (["--config.batch_size=many"], r"config.batch_size=many: invalid literal"),
    "choice": (["--config.protocol=50k"], r"protocol must be one of full, 45k5k, not"),
    "range": (["--config.epochs=0"], r"epochs must be at least 1, not 0"),
    "batch": (
        ["--config.batch_size=99", "--config.num_devices=2"],
        r"batch_size 99 is not divisible by 2 devices: use 100, for",
    ),
    "batch, large": (
        ["--config.batch_size=2000"],
        r"A batch size of 2000 does not fit 1437 training examples",
    ),
    "p_L zero": (
        ["--config.stochastic_depth={'last_survival': 0}"],
        r"p_L of the last block, must be in \(0, 1\], not 0\.",
    ),
    "p_L large": (
        ["--config.stochastic_depth={'last_survival': 1.1}"],
        r"must be in \(0, 1\], not 1\.1",
    ),
    "stochastic depth": (["--config.stochastic_depth=half"], r"must be a dict or N"),
    "plateau": (
        ["--config.lr_schedule=plateau"],
        r"plateau needs held-out examples, with protocol=45k5k",
    ),
    "plateau's factor": (
        ["--config.lr_schedule=plateau", "--config.lr_factor=1.0"],
        r"needs an lr_factor between 0 and 1, not 1.0",
    ),
    "two warm-ups": (
        ["--config.warmup=5", "--config.warmup_until_error=80"],
        r"Set either warmup, a length, or warmup_until_error",
    ),
    "parts of a batch": (
        ["--config.micro_batches=7"],
        r"micro_batches 7 do not divide a batch_size of 240",
    ),
    "colours": (["--config.pca_noise=0.1"], r"need RGB images; digits is greyscale"),
    "precision": (
        ["--config.matmul_precision=tf32"],
        r"must be one of None, bfloat16, tensorfloat32, float32, not 'tf32'",
    ),
    "nothing to deepen": (
        ["--config.init_deepen=True"],
        r"init_deepen needs init_from",
    ),
    "momentum of another rule": (
        ["--config.optimizer=adamw", "--config.nesterov=True"],
        r"nesterov is a rule of sgd and lars",
    ),
    "nothing to begin from": (["--config.init_from=x.pt"], r"There is no file x.pt"),
    "drops": (["--config.lr_drops=(0.7, 0.5)"], r"lr_drops must increase"),
    "value apart": (["--config.lr_drops_unit", "epoch"], r"lr_drops_unit must be one"),
    "field's value": (["--epochs=many"], r"config.epochs=many: invalid"),
    "field, almost": (["--epoch=3"], r"Unknown option '--epoch'; similar: --epochs"),
    "option": (["--wordkir=x"], r"Unknown option '--wordkir'; similar: --workdir"),
    "argument": (["now"], r"Unexpected argument 'now'"),
}


@pytest.mark.parametrize("options, sentence", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path, monkeypatch, capsys, options, sentence
):
    workdir = tmp_path / "bad"
    assert in_process(monkeypatch, arguments(workdir, *options)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("rn_jax: ") and captured.err.count("\n") == 1
    assert re.search(sentence, captured.err), captured.err
    assert not workdir.exists()  # nothing begun that the next try would stumble over


def test_unknown_data_set_and_config(tmp_path, monkeypatch, capsys):
    argv = arguments(tmp_path / "w", dataset="cifar11")
    assert in_process(monkeypatch, argv) == 2
    assert "Unknown data set 'cifar11'; similar: cifar10" in capsys.readouterr().err
    argv = arguments(tmp_path / "w", config="resnet21")
    assert in_process(monkeypatch, argv) == 2
    assert re.search(
        r"There is no config .*resnet21.py; similar: .*configs/resnet20.py",
        capsys.readouterr().err,
    )
    assert in_process(monkeypatch, ["resnet21:digits"]) == 2
    assert re.search(
        r"There is no config resnet21; similar: .*resnet20[,;]", capsys.readouterr().err
    )
    assert in_process(monkeypatch, []) == 2
    assert "Name a config" in capsys.readouterr().err


def test_workdir_that_is_not_in_utf_8_is_refused_at_once(tmp_path, monkeypatch, capsys):
    """A name of other bytes, or one of UTF-8 where the locale has another encoding."""
    path = tmp_path / "\udcc3\udca9"
    assert in_process(monkeypatch, arguments(path)) == 2
    assert r"\udcc3\udca9' is not in UTF-8" in capsys.readouterr().err
    assert not path.exists()


def test_default_workdir_is_named_by_config_data_set_and_time(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fake.use(monkeypatch)
    argv = [a for a in arguments("") if not a.startswith("--workdir")]
    assert in_process(monkeypatch, argv) == 0
    [workdir] = tmp_path.glob("runs/*")
    assert re.fullmatch(r"resnet20-digits-\d{8}-\d{6}", workdir.name)


def test_a_stopped_run_with_averages_and_mixed_images_resumes(tmp_path, monkeypatch):
    """Bit for bit; what is evaluated and exported are the averages."""
    monkeypatch.setitem(MODELS, "tiny", driver.TINY)
    options = ["--config.ema_decay=0.5", "--config.mixup_alpha=1.0"]
    options += ["--config.cutmix_alpha=1.0", "--config.label_smoothing=0.1"]
    options += ["--config.optimizer=lars", "--config.clip_norm=1.0"]
    options += ["--config.micro_batches=2", "--config.eval_every_steps=3"]
    options += ["--config.steps=6", "--config.lr_drops=()"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert in_process(monkeypatch, arguments(whole, *options)) == 0
    with monkeypatch.context() as patch:
        driver.stop_after(patch, 2)
        assert in_process(patch, arguments(parts, *options)) == 75
    assert in_process(monkeypatch, arguments(parts, *options)) == 0
    driver.assert_same_run(whole, parts)
    state = driver.final_state(whole)
    variables = trained.finished(str(whole)).variables
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(leaf, state[f"['ema']{name}"])
    head = "['params']['head']['kernel']"
    assert (state[f"['ema']{head}"] != state[head]).any()
