# SPDX-License-Identifier: Apache-2.0
"""Every field of a config with values that do not fit: one sentence and exit code 2.

A value is given as a user does, on the command line or in a config file. Either it is
taken, and then everything up to a traced training step works, or it is refused. Nothing
is compiled here, and what would not fit into memory is only shapes.
"""

import copy
import functools
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.default import FIELDS
from experiments import cli
from experiments.config import load_config, make_config
from experiments.training import pretrained, setup
from rn_jax import ModelEntry, parallel, train
from rn_jax.models import MODELS
from rn_jax.models.resnet import ResNet

KIND = "config field"
pytestmark = [pytest.mark.faults, pytest.mark.slow]

CONFIG = f"--config={Path(__file__).parents[2]}/configs/resnet20.py:digits"
BASE = ["--config.model=tiny", "--config.epochs=2", "--config.batch_size=24"]

TRY = functools.partial(
    settings,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

NUMBERS = [2**31 - 1, 1e37, 0, 1e-300, 1, -1, 2, 7, 10**9, 2**31, 10**30, -(10**30)]
NUMBERS += [0.5, -0.5, 1.5, 1e300, math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "x", "None", "nan", "digits", "cosine", "plateau", "45k5k", "a\nb"]
TEXTS += [
    "\0",
    "\x1b[2J",
    "ü\u202e",
    "\udcff",
    "../../x",
    "--x",
    "'",
    "x" * 300,
    "x" * 5000,
]
SCALARS = st.sampled_from([*NUMBERS, *TEXTS, None, True, False, 1j, b"x", object()])
VALUES = st.one_of(
    SCALARS,
    st.floats(),
    st.integers(),
    st.text(max_size=5),
    st.lists(SCALARS, max_size=3),
    st.lists(SCALARS, max_size=3).map(tuple),
    st.dictionaries(SCALARS, SCALARS, max_size=2),
    st.sampled_from([(), [], {}, {1}, [[[[[[]]]]]], range(3), np.float32(1), 10**5000]),
)
WORDS = SCALARS.map(lambda value: str(value).replace("\0", "\\0"))
TYPED = st.one_of(
    WORDS,
    st.sampled_from(["(", "[1", "{'a':", "(1,)*3", "-" * 3000, "(" * 3000, "9" * 5000]),
    st.lists(SCALARS, max_size=3).map(repr),
    st.lists(SCALARS, max_size=3).map(tuple).map(repr),
    st.dictionaries(st.sampled_from(TEXTS), SCALARS, max_size=2).map(repr),
)


@pytest.fixture(autouse=True, scope="module")
def shapes_alone():
    """The tiny network in the table, and its state as shapes: nothing is allocated."""

    def create_state(key, **parts):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "jit", lambda function: function)
            return jax.eval_shape(functools.partial(real, **parts), key)

    real = train.create_state
    entry = ModelEntry(ResNet, {"stage_sizes": (2,), "features": (4,), "remat": "none"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", entry)
        patch.setattr(train, "create_state", create_state)
        patch.setattr(parallel, "replicate", lambda tree, devices, mode: tree)
        patch.setattr(setup, "use_compilation_cache", lambda folder: None)
        yield


@functools.cache
def base():
    return load_config([CONFIG, *BASE, "--config.num_devices=1"])[1]


def reach_a_traced_step(config):
    """What a run does before its first step, and that step without its numbers."""
    with jax.numpy_dtype_promotion("standard"):  # as a user has it
        _reach_a_traced_step(config)


def _reach_a_traced_step(config):
    precision = jax.config.jax_default_matmul_precision
    try:
        experiment = setup.build(config)
        if config.init_from is not None:
            pretrained.initialise(experiment.initial_state, config)
    finally:
        jax.config.update("jax_default_matmul_precision", precision)
    assert 1 <= experiment.total_steps < 2**31
    for step in (0, experiment.total_steps - 1):
        assert np.isfinite(experiment.schedule(np.int32(step)))
    if len(experiment.devices) == 1:  # the step over several is the same one
        batch = next(experiment.batches(0, 1))
        state = experiment.initial_state
        jax.eval_shape(experiment.train_step, state, batch, experiment.key)


# Configs of a test that are traced once taken; of further ones the checks alone run.
TRACED = 2


class Outcomes:
    """Tries configs and counts them."""

    def __init__(self, capsys):
        self.capsys, self.tried, self.traced = capsys, 0, 0

    def check(self, make_config):
        """That the config made is taken and works, or is refused in one sentence."""
        self.tried += 1

        def run():
            config = make_config()
            setup.check(config)
            if self.traced < TRACED:
                reach_a_traced_step(config)
                self.traced += 1

        code = cli.exit_code(run)
        err = self.capsys.readouterr().err
        if code == 0:
            assert err == ""
            return
        assert code == 2
        assert err.startswith("rn_jax: ") and err.endswith("\n"), err
        assert err.count("\n") == 1 and "Traceback" not in err, err
        assert len(err) < 4100, err

    def check_fields(self, **changes):
        """The same of a config file that puts in values without asking their type."""
        self.check(lambda: make_config({**vars(copy.deepcopy(base())), **changes}))

    def check_options(self, *options):
        """The same of overrides on the command line, as "epochs=3"."""
        argv = [f"--config.{option}" for option in ("num_devices=1", *options)]
        self.check(lambda: load_config([CONFIG, *BASE, *argv])[1])


@pytest.fixture
def outcomes(capsys, faults):
    found = Outcomes(capsys)
    yield found
    faults(KIND, found.tried)


def fuzz(examples, values, check):
    @TRY(max_examples=examples)
    @given(values)
    def run(value):
        check(value)

    run()


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_values_of_a_config_file(field, outcomes):
    for value in [*NUMBERS, *TEXTS, None, True, (), [], {}, {"a": 1}, object()]:
        outcomes.check_fields(**{field: value})
    fuzz(25, VALUES, lambda value: outcomes.check_fields(**{field: value}))


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_values_on_the_command_line(field, outcomes):
    for text in ["nan", "inf", "-1", "0", str(10**30), "1e400", "", "()", "[]", "{}"]:
        outcomes.check_options(f"{field}={text}")
    fuzz(15, TYPED, lambda text: outcomes.check_options(f"{field}={text}"))


DEPTHS = {
    "last_survival": st.sampled_from([0.5, 1, 0, -1, 1e-300, math.nan, True, "x"]),
    "schedule": st.one_of(
        st.sampled_from(["linear", "uniform", (), (0.5,) * 4, (1, math.nan)]), VALUES
    ),
    "granularity": st.sampled_from(["batch", "example", "subset", "x", None, ()]),
    "scaling": st.sampled_from(["test", "training", "none", 1]),
    "closed_statistics": st.sampled_from([None, "frozen", "updated", []]),
    "num_open": st.sampled_from([None, 1, 4, 5, 10**9, 0, -1, 1.5, True, "x"]),
    "shake": st.sampled_from([None, "batch", "example", "pixel", 1, []]),
    "shake_forward": st.one_of(st.sampled_from([(-1, 1), (1, -1), "01"]), VALUES),
    "preset": st.one_of(st.sampled_from(["timm", "huang2016", "tim"]), VALUES),
    "x": SCALARS,
}


def test_entries_of_stochastic_depth(outcomes):
    for name, values in DEPTHS.items():
        fuzz(
            20,
            st.one_of(values, VALUES),
            lambda value: outcomes.check_fields(stochastic_depth={name: value}),
        )
    fuzz(
        60,
        st.fixed_dictionaries({}, optional=DEPTHS),
        lambda entries: outcomes.check_fields(stochastic_depth=entries),
    )
    outcomes.traced = 0
    for name in DEPTHS:
        for text in ["nan", "1e400", "(", "(" * 3000, "9" * 5000, "", "{}", "a b"]:
            outcomes.check_options(f"stochastic_depth.{name}={text}")


SIZES = [(1, 1), (2, 2), (0,), (), (-1, 2), (2,), (1, 1, 1), (10**9,) * 3, (8.5, 2)]
SIZES += [(9999, 9999), (1, "x"), "ab", 5, None, ((1, 1), 2), (16000, 16000)]
NETWORK = sorted(set(ResNet.__dataclass_fields__) - {"stochastic_depth"})


@pytest.mark.parametrize("entry", [*NETWORK, "x", "block_kwargs.dropout"])
def test_entries_of_model_kwargs(entry, outcomes):
    outcomes.traced = -3  # these have most ways to fail within a trace
    for value in [*SIZES, 0, -1, 2**13, 10**30, math.nan, "", "x", True, {}, {"x": 1}]:
        outcomes.check_fields(model_kwargs={entry: value})
    fuzz(10, VALUES, lambda value: outcomes.check_fields(model_kwargs={entry: value}))
    for text in ["nan", "1e400", "(", "9" * 5000, "", "{}", "a b", "None"]:
        outcomes.check_options(f"model_kwargs.{entry}={text}")


@pytest.mark.parametrize("model", ["densenet40_12", "highway50_mnist", "vgg11"])
def test_sizes_of_other_networks(model, outcomes):
    names = ["depth", "growth_rate", "compression", "features", "stage_sizes"]
    for name in names:
        for value in [0, -1, 0.5, math.nan, 10**30, "x", (), (0,), (10**9,), None]:
            outcomes.traced = TRACED
            outcomes.check_fields(model=model, model_kwargs={name: value})


PLAUSIBLE = {
    **{name: st.sampled_from(f.choices) for name, f in FIELDS.items() if f.choices},
    **{
        name: st.sampled_from([least, least + 1, 12, 400, 2**31 - 1])
        for name, field in FIELDS.items()
        if (least := field.limits.least) > -math.inf
    },
    "lr_drops": st.sampled_from([(), (0,), (0.5, 0.75), (1, 2), (2**31 - 1,), (0, 1)]),
    "learning_rate": st.sampled_from([0, 1e-38, 0.1, 1e38]),
    "warmup_learning_rate": st.sampled_from([0, 1e-38, 0.1, 1e38]),
    "model": st.sampled_from(["tiny", "plain18", "tiny"]),
    "stochastic_depth": st.sampled_from([None, {"preset": "timm"}, {"num_open": 5}]),
}


def test_several_fields_at_once(outcomes):
    outcomes.traced = -25

    def check(names_and_values):
        outcomes.check_fields(**names_and_values)

    pairs = st.one_of([st.tuples(st.just(n), v) for n, v in PLAUSIBLE.items()])
    fuzz(250, st.lists(pairs, min_size=2, max_size=4).map(dict), check)
