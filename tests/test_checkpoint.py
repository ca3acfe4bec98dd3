# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: which are kept and restored, and what damage does."""

import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from damage import fill_with_zeros, flip_one_bit, remove, truncate

import rn_jax
from rn_jax import InputError
from rn_jax.checkpoint import Checkpoints


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple


TX = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))


def make_state(step):
    # Large enough that the arrays lie in a file of their own, not in an index.
    kernel = jax.random.normal(jax.random.key(step), (60, 50))
    params = {"a": {"kernel": kernel, "empty": {}}}
    return State(jnp.int32(step), params, TX.init(params))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


@pytest.fixture
def saved(tmp_path):
    """A run with checkpoints 1, 2 (the best), 3 and 4, of which 1 is not kept."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3, 4):
        checkpoints.save(make_state(step), {"seconds": step / 2}, best=step <= 2)
    checkpoints.close()
    return tmp_path


def steps_in(path):
    return sorted(int(p.name) for p in (path / "checkpoints").iterdir())


def test_the_last_two_and_the_best_are_kept(saved):
    assert steps_in(saved) == [2, 3, 4]
    checkpoints = Checkpoints(saved / "checkpoints")
    checkpoints.restore(make_state(0))
    assert checkpoints.best_step() == 2
    assert checkpoints.latest_step() == 4
    assert_equal(checkpoints.read(2, make_state(0)), make_state(2))
    checkpoints.close()


def test_the_best_is_kept_over_a_restart_until_a_better_one_comes(saved):
    checkpoints = Checkpoints(saved / "checkpoints")
    checkpoints.restore(make_state(0))
    for step in (5, 6):
        checkpoints.save(make_state(step), {})
    checkpoints.wait()
    assert steps_in(saved) == [2, 5, 6]
    for step in (7, 8, 9):
        checkpoints.save(make_state(step), {}, best=step == 7)
    checkpoints.wait()
    assert steps_in(saved) == [7, 8, 9]
    assert checkpoints.best_step() == 7
    checkpoints.close()


def test_restore_gives_back_what_was_saved(saved):
    checkpoints = Checkpoints(saved / "checkpoints")
    state, record = checkpoints.restore(make_state(0))
    assert record == {"seconds": 2.0}
    assert_equal(state, make_state(4))
    checkpoints.close()


def test_restore_of_nothing_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(make_state(0)) is None
    assert checkpoints.best_step() is None
    checkpoints.close()


def files_of(saved, step):
    """Return the files of a checkpoint; the largest, with arrays, is first."""
    files = [p for p in (saved / f"checkpoints/{step}").rglob("*") if p.is_file()]
    return sorted(files, key=lambda p: -p.stat().st_size)


# TensorStore's other reads may end after the first damaged one has closed Orbax's event
# loop; what they then say, in a callback that nobody waits for, is no failure of ours.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage",
    [truncate, fill_with_zeros, remove, flip_one_bit],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("only_data", [False, True], ids=["all", "data"])
def test_before_a_damaged_one_the_one_before_is_taken(saved, damage, only_data, capfd):
    files = files_of(saved, 4)
    damage(files[:1] if only_data else files)
    said = []
    checkpoints = Checkpoints(saved / "checkpoints", report=said.append)
    state, record = checkpoints.restore(make_state(0))
    assert_equal(state, make_state(3))
    assert record == {"seconds": 1.5}
    assert said == ["The checkpoint of step 4 is damaged; trying the one before."]
    # The damaged one is out of the way but not lost, and its step can be saved again.
    assert steps_in(saved) == [2, 3]
    assert [p.name for p in (saved / "damaged").iterdir()] == ["4-1"]
    checkpoints.save(make_state(4), {})
    checkpoints.wait()
    assert steps_in(saved) == [2, 3, 4]
    checkpoints.close()
    assert "Traceback" not in capfd.readouterr().err


# Orbax gets each as it is or, by `filesystem.literal`, as a link.
NAMES = [
    *(
        "[2026]",
        "*",
        "?",
        "\\",
        "a\\b",
        "gs:",
        "-a ",
        "'\"",
        "#%20",
        "$HOME;&|",
        "{x}~,=",
    ),
    *("a\n\tb", "\u00e9 e\u0301 \U0001f600", "x" * 255),
]


@dataclasses.dataclass
class Tiny:
    step: int
    params: dict


flax.serialization.register_serialization_state(
    Tiny,
    lambda tiny: {"step": tiny.step, "params": tiny.params},
    lambda _, state: Tiny(int(state["step"]), state["params"]),
)


def tiny(step):
    return Tiny(np.int32(step), {"k": np.arange(step, step + 3)})


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_folder_may_have_any_name(tmp_path, name, caplog):
    folder = tmp_path / name / "c"
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(tiny(step), {"seconds": step}, best=step == 1)
    checkpoints.close()
    assert sorted(os.listdir(folder)) == ["1", "2"]
    checkpoints = Checkpoints(folder, read_only=True)
    assert caplog.records == []  # Orbax's warnings that it is read-only
    state, record = checkpoints.restore(tiny(0))
    assert (state.step, record) == (2, {"seconds": 2})
    np.testing.assert_array_equal(state.params["k"], [2, 3, 4])
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (1, 2)
    np.testing.assert_array_equal(checkpoints.read(1, most=5)["params"]["k"], [1, 2, 3])
    checkpoints.close()


def test_a_folder_beside_what_its_name_as_a_pattern_matches(tmp_path, monkeypatch):
    """Also as the current folder, and with damaged checkpoints."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for name, start in (("run", 1), ("r*", 4), ("[r]un", 7), ("run", 10)):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        checkpoints = Checkpoints("c")
        for step in (start, start + 1):
            checkpoints.save(tiny(step), {})
        checkpoints.close()
    for name, step in (("r*", 5), ("[r]un", 8), ("run", 11)):
        newest = tmp_path / name / "c" / str(step)
        (newest / "record" / "metadata").write_text("damaged")
        checkpoints = Checkpoints(tmp_path / name / "c", report=lambda _: None)
        state, _ = checkpoints.restore(tiny(0))
        assert state.step == step - 1
        checkpoints.close()
        assert os.listdir(tmp_path / name / "damaged") == [f"{step}-1"]


def test_a_failed_save_names_the_folder_and_not_the_link(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "[c]")

    def save(self, *args, **kwargs):
        raise OSError(28, "No space left", str(self.directory / "1"))

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    with pytest.raises(
        InputError, match=r"\(.* '.*/\[c\]/1'\); there is no earlier one"
    ) as error:
        checkpoints.save(tiny(1), {})
    assert "rn_jax-" not in str(error.value)
    checkpoints.close()


def test_a_save_is_refused_once_the_link_is_gone(tmp_path, monkeypatch):
    """As when old temporary files are removed during a run of weeks."""
    (tmp_path / "links").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "links"))
    checkpoints = Checkpoints(tmp_path / "[c]")
    [link] = (path for path in tmp_path.glob("links/**/*") if path.is_symlink())
    link.unlink()
    with pytest.raises(InputError, match="cannot be written"):
        checkpoints.save(tiny(1), {})
    checkpoints.close()


def test_a_bucket_is_not_taken_for_a_local_folder(monkeypatch):
    opened = []
    monkeypatch.setattr(
        ocp, "CheckpointManager", lambda folder, options: opened.append(str(folder))
    )
    assert str(Checkpoints("gs://bucket/a").directory) == "gs://bucket/a"
    assert opened == ["gs://bucket/a"]


def test_if_all_are_damaged_it_is_said_and_nothing_is_removed(saved):
    for step in (2, 3, 4):
        remove(files_of(saved, step))
    checkpoints = Checkpoints(saved / "checkpoints", report=lambda _: None)
    with pytest.raises(InputError, match=r"All checkpoints in .* are damaged"):
        checkpoints.restore(make_state(0))
    assert steps_in(saved) == [2, 3, 4]
    checkpoints.close()


def test_the_digest_notices_what_the_format_does_not(saved):
    """A changed value that can still be decoded."""
    file = next(Path(saved / "checkpoints/4/record").glob("metadata"))
    record = json.loads(file.read_text())
    record["ours"]["digest"] = "0" * 64
    file.write_text(json.dumps(record))
    checkpoints = Checkpoints(saved / "checkpoints", report=lambda _: None)
    assert checkpoints.restore(make_state(0))[0].step == 3
    checkpoints.close()


def test_a_checkpoint_begun_but_not_ended_does_not_count(saved):
    begun = saved / "checkpoints" / "5.orbax-checkpoint-tmp-1"
    begun.mkdir()
    (begun / "x").write_text("half")
    checkpoints = Checkpoints(saved / "checkpoints")
    assert checkpoints.latest_step() == 4
    checkpoints.close()


def test_checkpoint_of_another_network_is_refused_with_what_differs(saved):
    state = make_state(0)
    wider = state.replace(
        params={"a": {"kernel": jnp.zeros((60, 51)), "more": jnp.zeros(3)}}
    )
    checkpoints = Checkpoints(saved / "checkpoints", report=lambda _: None)
    with pytest.raises(
        InputError,
        match=r"of step 4 in .* belongs to another network: params/a/kernel is "
        r"float32\[60, 50\] there and float32\[60, 51\] here, and 1 more differ\.",
    ):
        checkpoints.restore(wider)
    assert steps_in(saved) == [2, 3, 4]
    checkpoints.close()


def test_checkpoint_of_another_class_count_is_refused(tmp_path):
    states = {}
    for classes in (10, 11):
        model = rn_jax.create_model("resnet20", num_classes=classes)
        variables = jax.eval_shape(
            lambda model=model: model.init(
                {"params": jax.random.key(0)}, jnp.zeros((1, 8, 8, 3)), train=False
            )
        )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables["params"])
        states[classes] = make_state(0).replace(params=zeros)
    checkpoints = Checkpoints(tmp_path, report=lambda _: None)
    checkpoints.save(states[10], {}, best=False)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, report=lambda _: None)
    with pytest.raises(
        InputError,
        match=r"another network: params/head/bias is float32\[10\] there and "
        r"float32\[11\] here, and 1 more differ",
    ):
        checkpoints.restore(states[11])
    checkpoints.close()


def test_checkpoint_of_another_format_is_refused(saved):
    file = next(Path(saved / "checkpoints/4/record").glob("metadata"))
    record = json.loads(file.read_text())
    record["ours"]["format"] = 99
    file.write_text(json.dumps(record))
    checkpoints = Checkpoints(saved / "checkpoints", report=lambda _: None)
    with pytest.raises(InputError, match="its format is 99, and this one reads 1"):
        checkpoints.restore(make_state(0))
    assert steps_in(saved) == [2, 3, 4]
    checkpoints.close()


def test_a_checkpoint_from_before_averages_existed_is_restored(saved):
    """It has no part "ema", and nor has a new one without averages."""

    @flax.struct.dataclass
    class Averaging(State):
        ema: dict

    checkpoints = Checkpoints(saved / "checkpoints")
    like = Averaging(**vars(make_state(0)), ema={})
    state, _ = checkpoints.restore(like)
    assert_equal(state, Averaging(**vars(make_state(4)), ema={}))
    checkpoints.save(Averaging(**vars(make_state(5)), ema={}), {})
    checkpoints.wait()
    assert_equal(checkpoints.read(5, make_state(0)), make_state(5))
    averages = {"params": np.arange(3.0)}
    checkpoints.save(Averaging(**vars(make_state(6)), ema=averages), {})
    checkpoints.wait()
    like = Averaging(**vars(make_state(0)), ema={"params": np.zeros(3)})
    np.testing.assert_array_equal(checkpoints.read(6, like).ema["params"], np.arange(3))
    checkpoints.close()
