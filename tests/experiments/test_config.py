# SPDX-License-Identifier: Apache-2.0
"""Configs loaded by name or file, read back, and values that no field can have.

The fault suite tries many more values.
"""

import dataclasses
import json
import math
import re

import pytest
from driver import ROOT
from etils import epath

import configs
from configs.default import FIELDS, Config
from experiments.config import (
    as_json,
    field_of,
    load_config,
    make_config,
    read_config,
    short_names,
)
from experiments.training import setup
from rn_jax.errors import InputError

KEPT = sorted(f.parent for f in (ROOT / "results/runs").glob("*/*/*/config.json"))

# A config file of a user's own.
MINE = """
import configs


def get_config(dataset="cifar10"):
    return configs.get_config("resnet20", dataset)
"""


def test_config_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(MINE)
    name, config = load_config(["--config=~/mine.py:digits"])
    assert (name, config.dataset) == ("mine", "digits")
    name, config = load_config(
        ["--config=~/mine.py", "--config.dataset=digits", "--config.model=resnet32"]
    )
    assert (name, config.dataset) == ("mine", "digits")
    assert config.published_error_percent == {}  # that of another model


def test_config_below_a_folder_with_colons(tmp_path):
    folder = tmp_path / "a:b" / "c:d.py"
    folder.mkdir(parents=True)
    file = folder / "mine.py"
    file.write_text(MINE)
    for argv, dataset in (
        ([f"--config={file}"], "cifar10"),
        ([f"--config={file}:digits"], "digits"),
        (["--config", f"{file}:svhn_cropped", "--config.dataset=digits"], "digits"),
        ([f"--config={file}", "--config.model=resnet32"], "cifar10"),
    ):
        name, config = load_config(argv)
        assert (name, config.dataset) == ("mine", dataset)


def test_config_with_a_mistake(tmp_path):
    file = tmp_path / "mine.py"
    for source, reason in (
        ("def get_config(:", "SyntaxError: invalid syntax"),
        ("def get_config(): return 1 + 'a'", "TypeError: unsupported operand"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("open('nowhere')", "FileNotFoundError: .*'nowhere'"),
        ("", "AttributeError: .*no attribute 'get_config'"),
    ):
        file.write_text(source)
        with pytest.raises(InputError, match=f"^The config {file} cannot .*: {reason}"):
            load_config([f"--config={file}"])
    file.write_text("def get_config(): return {}")
    with pytest.raises(InputError, match=r"^The config .* ConfigDict, not {}"):
        load_config([f"--config={file}"])


@pytest.mark.parametrize("name", ["resnet110_sd", "resnet164", "he2016"])
def test_rows_and_files_are_loaded_alike(name, monkeypatch, tmp_path):
    """By name or path, from the root of the project or from anywhere."""
    expected = make_config(configs.get_config(name, "digits"))
    monkeypatch.chdir(ROOT)
    for file in (
        f"configs/{name}.py",
        f"./configs/{name}.py",
        f"{ROOT}/configs/{name}.py",
    ):
        assert load_config([f"--config={file}:digits"]) == (name, expected)
        assert load_config(["--config", file])[1].dataset == "cifar10"
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # a run's folder of that name is no config
    for file in (
        name,
        f"configs/{name}.py",
        f"./configs/{name}.py",
        f"{ROOT}/configs/{name}.py",
    ):
        assert load_config([f"--config={file}:digits"]) == (name, expected)
        assert load_config(["--config", file])[1].dataset == "cifar10"
    for file in (f"{tmp_path}/configs/{name}.py", f"{name}.py"):
        with pytest.raises(InputError, match=f"There is no config {file}; .* --list"):
            load_config([f"--config={file}"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=r"similar: .*configs/resnet110_sd\.py"):
        load_config(["--config=configs/resnet110_ds.py"])


def test_a_file_of_the_user_s_own_is_read_from_any_folder(monkeypatch, tmp_path):
    """Also one in a folder `configs` beside which ours is not."""
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "resnet20.py"
    text = (ROOT / "configs" / "resnet110.py").read_text("utf-8")
    own.write_text(text.replace("def get_config", "def other") + "get_config = other\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(["--config=configs/resnet20.py"])[1].model == "resnet110"
    assert load_config(["--config=resnet20"])[1].model == "resnet20"


@pytest.mark.parametrize("name", ["resnet20", "resnet110_scaling_05_1"])
def test_what_a_config_says_of_its_network_is_not_of_another(name):
    file = f"--config={ROOT}/configs/{name}.py"
    _, own = load_config([file, "--config.seed=1"])
    assert own.published_error_percent or own.expected_to_fail
    _, other = load_config([file, "--config.model", "resnet32"])
    assert not other.published_error_percent and not other.expected_to_fail
    same = f"--config.model={own.model}"
    known = "--config.published_error_percent={'cifar10': 5.0}"
    _, same = load_config([file, same, "--config.seed=1"])
    assert same == own
    _, given = load_config([file, "--config.model=resnet32", known])
    assert given.published_error_percent == {"cifar10": 5.0}


def test_a_config_is_checked_when_it_is_made_or_changed(config):
    with pytest.raises(InputError, match="seed must be a whole number, not 'x'"):
        Config(seed="x")
    with pytest.raises(InputError, match="epochs must be at least 1, not 0"):
        dataclasses.replace(config, epochs=0)
    sizes = {"stage_sizes": (1, (2,))}
    made = Config(lr_drops=[1, 2], model_kwargs=sizes)
    assert made.lr_drops == (1, 2)
    assert (
        made.model_kwargs == {"stage_sizes": [1, [2]]} == as_json(made)["model_kwargs"]
    )


def test_what_is_none_can_be_set_and_a_dict_unset():
    file = f"--config={ROOT}/configs/resnet110_sd.py"
    given = ["--config.steps=7", "--config.augment_flip=False", "--config.init_from=x"]
    _, config = load_config([file, *given, "--config.stochastic_depth=None"])
    assert (config.steps, config.augment_flip, config.init_from) == (7, False, "x")
    assert config.stochastic_depth is None


def test_config_of_a_run_is_read_back_as_it_was(tmp_path):
    fields = {"lr_drops": (1, 2.5), "model_kwargs": {"stage_sizes": [1, 2]}}
    config = Config(**fields)
    file = epath.Path(tmp_path) / "config.json"
    file.write_text(json.dumps(as_json(config)))
    assert read_config(file.parent) == config
    assert list(as_json(config)) == sorted(FIELDS)
    earlier = as_json(config)
    later = {"momentum_form", "mean_image_examples", "num_devices", "micro_batches"}
    for name in later:
        del earlier[name]
    file.write_text(json.dumps(earlier))
    read = read_config(file.parent)
    assert (read.momentum_form, read.mean_image_examples) == ("torch", 10_000)
    assert (read.num_devices, read.micro_batches) == (None, 1)
    file.write_text(json.dumps({"model": "resnet20"}))
    with pytest.raises(InputError, match="of an older version: its config has no aug"):
        read_config(file.parent)
    file.write_text(json.dumps({**earlier, "seed": "1"}))
    with pytest.raises(InputError, match="seed must be a whole number, not '1'"):
        read_config(file.parent)


@pytest.mark.parametrize("folder", KEPT, ids=lambda f: "/".join(f.parts[-3:]))
def test_runs_of_earlier_versions_are_read(folder):
    """Among them are runs on a GPU, whose version lacked two fields of today's."""
    config, kept = (
        read_config(epath.Path(folder)),
        json.loads((folder / "config.json").read_text()),
    )
    assert {name: as_json(config)[name] for name in kept} == kept


WRONG = [object(), -math.inf, {"a": {1, 2}}, 10**30, "\0"]


@pytest.fixture(scope="module")
def config():
    return load_config([f"--config={ROOT}/configs/resnet20.py:digits"])[1]


@pytest.mark.parametrize("field", FIELDS)
def test_values_of_a_wrong_type_are_refused_in_one_sentence(field, config):
    for wrong in WRONG:
        with pytest.raises(InputError) as error:
            setup.check(dataclasses.replace(config, **{field: wrong}))
        message = str(error.value)
        assert re.match(rf"{field}\b.* must ", message), message
        assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"augment": 1}, "augment must be True or False, not 1"),
        ({"epochs": True}, "epochs must be a whole number or None, not True"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number, not '0.1'"),
        ({"eval_batch_size": 10**9}, "eval_batch_size must be at most 65,536, not"),
        ({"augment_pad": 9}, "augment_pad must be at most 8, the side of an image"),
        ({"lr_drops": (True,)}, "lr_drops.0 must be a number, not True"),
        ({"lr_drops": (2, 1)}, r"lr_drops must increase, unlike \(2, 1\)"),
        ({"train_scales": (256, 1e9)}, "train_scales.1 must be a whole number"),
        ({"train_scales": (9, 5000)}, "train_scales.1 must be at most 4,096, not 5000"),
        ({"train_scales": (256,)}, "train_scales must have 2 entries, not 1"),
        ({"model_kwargs": {"features": 2**40}}, r"kwargs.features must be below 16,3"),
        ({"model_kwargs": {"norm": print}}, "which config.json can hold"),
        ({"model_kwargs": {"stage_sizes": "no"}}, "stage_sizes must be a tuple of"),
        ({"stochastic_depth": {"num_open": 1.5}}, "num_open must be a whole number"),
        (
            {"published_error_percent": {"digits": "5"}},
            "digits must be a number",
        ),
        ({"published_error_percent": {"digits": 101}}, "digits must be at most 100"),
    ],
)
def test_sentences(config, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        setup.check(dataclasses.replace(config, **changes))


def test_a_field_that_is_missing_or_unknown(config):
    rest = {name: value for name, value in vars(config).items() if name != "seed"}
    with pytest.raises(InputError, match="The config has no seed: add it, as in"):
        make_config(rest)
    with pytest.raises(
        InputError, match="field of the config 'epoch'; similar: epochs"
    ):
        make_config({**vars(config), "epoch": 3})


def test_accum_steps_is_another_name_of_micro_batches():
    file = f"--config={ROOT}/configs/resnet20.py:digits"
    ours, theirs = "--config.micro_batches=4", "--config.accum_steps=4"
    _, expected = load_config([file, ours])
    for given in ([theirs], ["--config.accum_steps", "4"], [ours, theirs]):
        assert load_config([file, *given])[1] == expected
    assert as_json(expected)["micro_batches"] == 4
    assert "accum_steps" not in as_json(expected)
    assert field_of(expected, "accum_steps") == 4
    with pytest.raises(InputError, match="accum_steps=2 and micro_batches=4 are the s"):
        load_config([file, ours, "--config.accum_steps=2"])
    with pytest.raises(InputError, match="micro_batches must be at least 1, not 0"):
        load_config([file, "--config.accum_steps=0"])


def test_short_names_are_the_last_parts_that_tell_fields_apart():
    fields = ["model", "stochastic_depth.last_survival", "a.x.rate", "b.x.rate"]
    assert short_names(fields) == {
        "model": "model",
        "stochastic_depth.last_survival": "last_survival",
        "a.x.rate": "a.x.rate",
        "b.x.rate": "b.x.rate",
    }
    assert short_names(["a.rate", "rate"]) == {
        "a.rate": "a.rate",
        "rate": "rate",
    }
