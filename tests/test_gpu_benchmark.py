# SPDX-License-Identifier: Apache-2.0
"""The measurements on a GPU: whose turn it is, what fails, and the tables of rows."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, gpu_steps, turns
from experiments.training.network import make_model
from rn_jax.train import TrainState

ROOT = Path(__file__).parents[1]

# Children by what they do. They write what happens to the file `happened`, in order.
FAKE = """
import os, subprocess, sys, time
name, folder = sys.argv[1:]
def note(what):
    with open(folder + "/happened", "a", encoding="utf-8") as file:
        file.write(f"{what} {name} {os.getpid()}\\n")
note("start")
time.sleep(0.1)
if name == "crashes":
    sys.exit(3)
if name == "late":
    time.sleep(60)
if name == "parent":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(folder + "/grandchild", "w", encoding="utf-8") as file:
        file.write(str(child.pid))
note("ready")
print("READY", flush=True)
for line in sys.stdin:
    note("turn")
    if name == "dies":
        os._exit(4)
    if name == "hangs":
        time.sleep(60)
    time.sleep(0.05)
    note("end")
    print("noise" if name == "noisy" else '{"ms": 1.5}', flush=True)
"""


@pytest.fixture
def take(tmp_path):
    """take(turns, ...) -> its rows, with times in seconds from now."""

    def call(plan, *, ready=5.0, end=10.0, turn=5.0, at_once=9, stop=()):
        def command(child):
            return [sys.executable, "-S", "-c", FAKE, child, str(tmp_path)]

        now = time.monotonic()
        return turns.take_turns(
            plan,
            command,
            tmp_path,
            at_once=at_once,
            ready_by=now + ready,
            end_by=now + end,
            turn_seconds=turn,
            stop=stop,
        )

    return call


@pytest.fixture
def happened(tmp_path):
    """happened() -> (what, child) of all children in order."""

    def read():
        lines = (tmp_path / "happened").read_text("utf-8").splitlines()
        return [tuple(line.split()[:2]) for line in lines]

    return read


def running(tmp_path):
    """The fake children that are still there."""
    lines = (tmp_path / "happened").read_text("utf-8").splitlines()
    return [pid for pid in {line.split()[2] for line in lines} if is_running(pid)]


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return False
    return state[0] != "Z"


def test_turns_come_after_all_are_ready_one_by_one_in_order(take, happened, tmp_path):
    rows = list(take({"1": "a", "2": "b", "3": "a", "4": "c"}))
    assert rows == [(name, {"ms": 1.5}) for name in "1234"]
    events = happened()
    assert sorted(events[:6]) == sorted(
        (w, c) for w in ("ready", "start") for c in "abc"
    )
    assert events[6:] == [(what, c) for c in "abac" for what in ("turn", "end")]
    assert not running(tmp_path)


def test_a_child_ends_after_its_last_turn(take, tmp_path):
    taking = take({"1": "a", "2": "b", "3": "b"})
    assert [next(taking)[0] for _ in range(2)] == ["1", "2"]
    assert len(running(tmp_path)) == 1  # a has ended, and b has another turn
    taking.close()
    assert not running(tmp_path)


def test_few_prepare_at_once_the_most_important_first(take, happened):
    list(take({"1": "a", "2": "b", "3": "c"}, at_once=1))
    assert happened()[:6] == [(what, c) for c in "abc" for what in ("start", "ready")]


def test_failures_are_rows_and_the_rest_goes_on(take, tmp_path):
    plan = {"1": "crashes", "2": "late", "3": "dies", "4": "dies", "5": "noisy"}
    plan |= {"6": "hangs", "7": "good"}
    found = dict(take(plan, ready=4.0, turn=2.0))
    assert found == {
        "1": {"error": "ended with exit code 3, see crashes.log"},
        "2": {"error": "not ready in time"},
        "3": {"error": "ended with exit code 4, see dies.log"},
        "4": {"error": "ended with exit code 4, see dies.log"},
        "5": {"error": "unreadable answer 'noise'"},
        "6": {"error": "took too long"},
        "7": {"ms": 1.5},
    }
    assert not running(tmp_path)


def test_it_stops_in_time(take, tmp_path):
    start = time.monotonic()
    found = dict(take({"1": "good", "2": "hangs", "3": "good"}, end=2.0))
    assert time.monotonic() - start < 2.0 + 3
    assert found["2"] == {"error": "took too long"}
    assert found["3"] == {"error": "no time was left"}
    assert not running(tmp_path)


def test_a_signal_ends_it(take, tmp_path):
    signals = []
    found = {}
    for name, row in take({"1": "a", "2": "b", "3": "b"}, stop=signals):
        found[name] = row
        signals.append("SIGTERM")
    stopped = {"error": "stopped before its turn"}
    assert found == {"1": {"ms": 1.5}, "2": stopped, "3": stopped}
    assert not running(tmp_path)


def test_what_children_started_ends_too(take, tmp_path):
    list(take({"1": "parent"}))
    grandchild = (tmp_path / "grandchild").read_text("utf-8")
    until = time.monotonic() + 5  # nobody waits for its end, which takes a moment
    while is_running(grandchild) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(grandchild)


SERVED = """
from benchmarks.turns import serve
def good():
    print("a library says something")
    return lambda: {"ms": 2.0}
def bad():
    raise ValueError("no memory\\nand more")
serve({"good": good, "bad at once": bad, "bad then": lambda: bad})
"""


def test_a_child_answers_with_one_line_to_each_name():
    done = subprocess.run(
        [sys.executable, "-c", SERVED],
        input="bad then\ngood\nbad at once\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    ready, *lines = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    error = {"error": "ValueError: no memory"}
    assert ready == turns.READY
    assert all(row.pop("prepare_seconds") >= 0 for row in rows)
    assert rows == [error, {"ms": 2.0}, error]
    assert "a library says something" in done.stderr


# --- The plan and its tables ----------------------------------------------------------

FULL = gpu.plan(gpu.FULL, Path("folder"))


def test_plan_is_in_the_order_of_worth():
    names = [m.name for m in FULL]
    assert len(set(names)) == len(names)
    assert all("difference by graphs" in name for name in names[:2])
    # What the goals of steps need comes before other forms.
    goals = {
        name
        for w in gpu.FULL.workloads
        for name in (
            gpu.name_of_step(w, 1.0),
            gpu.name_of_step(w, 0.5),
            gpu.name_of_peer(w),
        )
    }
    assert set(names[2:11]) == goals
    for w in gpu.FULL.workloads:
        for compiled in (True, False):
            dropping = gpu.name_of_peer(w, compiled, 0.5)
            assert gpu.name_of_peer(w, compiled) in names
            assert (dropping in names) == (w.image_size == 32)
    kinds = ["open", "bare step", "real run", "trace"]
    places = [min(i for i, n in enumerate(names) if n.endswith(k)) for k in kinds]
    assert places == sorted(places) and places[-1] == len(names) - 1
    opens = [n.split(", ")[1] for n in names if n.endswith("open")]
    assert opens == [f"{k} of 54 blocks open" for k in (0, 14, 27, 41, 54)]
    for form in ("line, graphs", "line, no graphs", "scan, graphs", "scan, no graphs"):
        assert sum(name.endswith(form) for name in names) == 6


def test_names_of_children_are_names_of_files():
    assert all(
        m.child.replace("_", "").replace("-", "").replace(".", "").isalnum()
        for m in FULL
    )


def test_goals_are_beside_the_ratios():
    rows = {m.name: {"ms": 10.0, "images_per_second": 1.0} for m in FULL}
    for m in FULL[:2]:
        rows[m.name] = {"difference": 2e-5}
    f32, bf16, resnet50 = gpu.FULL.workloads
    rows[gpu.name_of_step(f32, 1.0)]["ms"] = 7.0
    rows[gpu.name_of_step(bf16, 0.5)]["ms"] = 7.8
    rows[gpu.name_of_step(resnet50, 1.0)]["images_per_second"] = 8000.0
    found = {r["name"]: r for r in gpu.compare(gpu.FULL, rows)}
    goals = {name: r["goal"] for name, r in found.items() if r["goal"] is not None}
    assert goals == {
        "resnet110 float32, p_L = 1, difference by graphs": 1e-5,
        "resnet110 float32, p_L = 0.5, difference by graphs": 1e-5,
        "resnet110 float32, ours / torch.compile": 0.75,
        "resnet110 bfloat16, ours / torch.compile": 0.6,
        "resnet50 bfloat16, ours / torch.compile": 0.8,
        "resnet50 bfloat16, 7,000 images/s / ours": 1.0,
        "resnet110 float32, p_L = 0.5 / constant depth": 0.78,
        "resnet110 bfloat16, p_L = 0.5 / constant depth": 0.78,
        "resnet20 float32, real run / bare step": 1.15,
    }
    reached = {name for name, r in found.items() if r["reached"]}
    assert reached == {
        "resnet110 float32, ours / torch.compile",
        "resnet110 bfloat16, p_L = 0.5 / constant depth",
        "resnet50 bfloat16, 7,000 images/s / ours",
        "resnet20 float32, real run / bare step",
    }
    assert found["resnet50 bfloat16, 7,000 images/s / ours"]["value"] == 7 / 8
    assert found["resnet110 float32, ours / torch.compile"]["value"] == 0.7
    assert "resnet50 bfloat16, p_L = 0.5 / constant depth" in found  # without a goal
    assert gpu.table_of_ratios([found["resnet110 float32, ours / torch.compile"]])[
        2:
    ] == ["| resnet110 float32, ours / torch.compile | yes | 0.7 | 0.75 |"]


def test_ratios_are_of_what_was_measured():
    f32 = gpu.FULL.workloads[0]
    rows = {
        gpu.name_of_step(f32, 1.0): {"ms": 9.0},
        gpu.name_of_peer(f32): {"error": "not ready in time"},
        gpu.name_of_peer(f32, compiled=False): {"ms": 18.0},
    }
    (only,) = gpu.compare(gpu.FULL, rows)
    assert only["name"] == "resnet110 float32, ours / torch eager"
    assert (only["value"], only["goal"], only["reached"]) == (0.5, None, None)


def test_skip_line():
    rows = {f"{k}": {"open_blocks": k, "ms": 2 + 0.5 * k} for k in (0, 14, 54)}
    found = gpu.skip_line({**rows, "step": {"ms": 1.0}, "27": {"error": "no"}})
    np.testing.assert_allclose([*found.values()], [2, 0.5])
    assert gpu.skip_line({"0": rows["0"]}) is None


def test_rows_of_the_table():
    row = {"ms": 1.234, "images_per_second": 5186.2, "prepare_seconds": 31.4}
    assert gpu.cells("step", row) == ["step", "1.23", "5,186", "31"]
    failed = {"error": "no memory", "prepare_seconds": 2.0}
    assert gpu.cells("step", failed) == ["step: no memory", "", "", "2"]


# --- The measurements -----------------------------------------------------------------


@pytest.mark.parametrize(("index", "blocks"), [(0, 54), (1, 54), (2, 16)])
def test_configs_are_those_of_pytorchs_networks(index, blocks):
    workload = gpu.FULL.workloads[index]
    for in_line, unroll in ((True, blocks), (False, 1)):
        config = gpu_steps.config_of(workload, gpu_steps.Form(in_line))
        model = make_model(config)
        assert (model.num_blocks, model.scan_unroll) == (blocks, unroll)
        assert (config.model, config.dtype) == (workload.model, workload.dtype)
        assert (config.batch_size, config.num_devices) == (workload.batch_size, 1)
        assert config.matmul_precision is None and not config.augment
        assert config.stochastic_depth is None and config.cuda_graphs


def test_differences_of_a_step():
    def result(scale=1.0, open_blocks=(1.0, 0.0)):
        state = TrainState(
            step=1,
            params={"a": jnp.array([3.0, 4.0]), "b": jnp.zeros(2)},
            batch_stats={"mean": jnp.ones(2)},
            opt_state=(jnp.array([[scale]]),),
            sums={},
            open_counts=None,
            feedback={},
            loss_scale={},
        )
        return state, {"loss": jnp.float32(2.0), "open": jnp.array(open_blocks)}

    found = gpu_steps.differences_of(result(), result())
    assert found == dict.fromkeys(
        ("loss", "open", "params", "batch_stats", "opt_state"), 0
    )
    found = gpu_steps.differences_of(result(), result(1.5))
    assert {name: d for name, d in found.items() if d} == {"opt_state": 0.5}
    assert (
        gpu_steps.differences_of(result(), result(open_blocks=(0.0, 1.0)))["open"] > 1
    )
    found = gpu_steps.differences_of(result(), result(np.nan))
    assert not found["opt_state"] <= gpu.TOLERANCE


def test_help(capsys):
    assert gpu.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--budget" in shown and "--rehearse" in shown and "--child" not in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget=29"], "--budget must be at least 30, not 29."),
        (["--budget=60"], "JAX sees no GPU here; --rehearse runs on the CPU."),
        ([], "The following arguments are required: --budget"),
        (["--budget=60", "--workdir=full"], "full is not empty: name a new folder"),
        (["--budget=60", "--workdir=full/file"], "Name another folder by --workdir"),
    ],
)
def test_bad_input(options, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    backend = "gpu" if len(options) > 1 else "cpu"
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert gpu.main(options) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]


@pytest.mark.slow
def test_rehearsal_takes_every_measurement(tmp_path):
    pytest.importorskip("torch", reason="compares with PyTorch")
    from benchmarks.torch_peer import importable_torchvision

    with importable_torchvision():
        pytest.importorskip("timm", reason="compares with PyTorch")
    folder = tmp_path / "rehearsal"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.gpu", "--rehearse"),
            *("--budget=1500", f"--workdir={folder}"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "rehearsal.json").read_text("utf-8"))
    assert list(found["rows"]) == [m.name for m in gpu.plan(gpu.REHEARSAL, folder)]
    assert not [row["error"] for row in found["rows"].values() if "error" in row]
    ratios = {r["name"]: r["value"] for r in found["ratios"]}
    assert all(np.isfinite(value) for value in ratios.values())
    # Two of equality, five of each dtype, a rate, and a real run.
    assert len(ratios) == len(found["ratios"]) == 2 + 2 * 5 + 1 + 1
    equal = [r for r in found["ratios"] if r["goal"] == gpu.TOLERANCE]
    assert len(equal) == 2 and all(r["reached"] for r in equal)
    assert found["skip_line"] is not None
