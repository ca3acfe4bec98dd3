# SPDX-License-Identifier: Apache-2.0
"""The training steps that XLA compiles for an absent GPU and TPU."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import configs
from benchmarks import device_program as program
from experiments.config import load_config, make_config
from rn_jax import create_model, parallel
from rn_jax.models.trunk import default_unroll

ROOT = Path(__file__).parents[2]
_TWO = {"stage_sizes": (2, 2, 2)}
# A config for each kind of network, the smallest one, and changes to its network. Where
# no two layers are alike, XLA compiles each of them.
KINDS: dict[str, dict[str, Any]] = {
    "plain20": {},
    "resnet20": {},
    "resnet110_conv_shortcut": {},
    "resnet110_dropout": {},
    "resnet110_scaling_05_05": {},
    "resnet110_exclusive_gating_0": {},
    "resnet110_shortcut_gating_0": {},
    "resnet110_dropout_shortcut": {},
    "resnet110_bn_after_addition": {},
    "resnet110_relu_before_addition": {},
    "resnet110_relu_only_preact": {},
    "preact_resnet110": {},
    "resnet110_single_layer": {},
    "ror3_110": {},
    "pre_ror3_164_sd": {},
    "resnet18": {},
    "resnet50": {},
    "se_resnet50": {},
    "se_resnet110": {},
    "resnext29_1x64d": {},
    "resnext50_32x4d": {},
    "wrn16_8": {},
    "swapout32_w4": {},
    "weighted_resnet110": {},
    "pyramidnet110_48": _TWO,
    "densenet40_12": _TWO,
    "densenet121": {"stage_sizes": (2, 2, 2, 2)},
    "fractalnet20": {},
    "inception_resnet_v2": {"stage_sizes": (2, 2, 2)},
    "highway19": {},
    "highway50_mnist": {},
    "vgg11": {},
    "alexnet_2012": {},
    "googlenet_2014": {},
}
FORMS = {
    "batch gates": {"last_survival": 0.5},
    "example gates": {"preset": "timm", "last_survival": 0.5},
    "subsets": {"granularity": "subset", "schedule": "uniform", "last_survival": 0.5},
    "short paths": {"num_open": 2, "schedule": "uniform"},
    "updated statistics": {"last_survival": 0.5, "closed_statistics": "updated"},
    "ShakeDrop": {"last_survival": 0.5, "shake": "example"},
}
# Networks whose closed blocks are conditionals in a scan, or of layers that differ.
CONDITIONALS: dict[str, dict[str, Any]] = {
    "resnet110_conv_shortcut": _TWO,
    "resnet110_bn_after_addition": _TWO,
    "densenet40_12": _TWO,
}


def config_of(name, **fields):
    _, config = load_config([f"--config=configs/{name}.py"])
    return dataclasses.replace(config, **fields)


def compile_quickly(lowered, device, **options):
    """Compile, with the least effort for a TPU, which takes minutes by default."""
    if program.DEVICES[device].backend == "tpu":
        options["exec_time_optimization_effort"] = -1.0
        options["memory_fitting_effort"] = -1.0
    return lowered.compile(options)


def fits(compiled, device):
    """Arguments, whose memory the outputs reuse, and temporary arrays."""
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return 0 < needed < program.DEVICES[device].memory


def test_every_class_of_networks_and_blocks_is_compiled():
    def kind(name):
        model = create_model(configs.get_config(name).model)
        return type(model), getattr(model, "block_class", None)

    assert {kind(name) for name in KINDS} == {kind(name) for name in configs.names()}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_network_compiles_and_fits(device, name):
    config = config_of(name, stochastic_depth=None, micro_batches=1)
    config = dataclasses.replace(
        config,
        model_kwargs={**config.model_kwargs, **KINDS[name]},
        batch_size=min(config.batch_size, program.batch_of(config.model, device)),
    )
    lowered, model = program.lower(config, program.describe(device)[:1])
    unroll = default_unroll(model.num_blocks, program.DEVICES[device].backend)
    assert getattr(model, "scan_unroll", unroll) == unroll
    assert fits(compile_quickly(lowered, device), device)


def compile_without_waiting(lowered, model, device, folder):
    """Compile; on a GPU, the whole step is one CUDA graph, and the host never waits."""
    dump = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
    if program.DEVICES[device].backend == "gpu":  # which `jax.pmap` cannot hand on
        dump |= parallel.cuda_graph_options(program.describe(device)[0])
    compiled = compile_quickly(lowered, device, **dump)
    assert fits(compiled, device)
    if program.DEVICES[device].backend == "gpu":
        found = program.GpuProgram(folder, model)
        cost = found.cost(expected=False)
        assert (found.graphs, cost.waits, cost.outside_graphs) == (1, 0, 0)
    return compiled


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unroll", [9, 1], ids=["line", "loop"])
def test_every_form_of_stochastic_depth_compiles_without_waiting(
    device, form, unroll, tmp_path
):
    """Gates of a mini-batch decide on the device, within the one CUDA graph."""
    kwargs = {"scan_unroll": unroll}
    config = config_of("resnet20", stochastic_depth=FORMS[form], model_kwargs=kwargs)
    lowered, model = program.lower(config, program.describe(device)[:1])
    compile_without_waiting(lowered, model, device, tmp_path)


@pytest.mark.parametrize("name", CONDITIONALS)
def test_conditionals_do_not_wait(device, name, tmp_path):
    settings, kwargs = FORMS["batch gates"], CONDITIONALS[name]
    config = config_of(name, stochastic_depth=settings, model_kwargs=kwargs)
    lowered, model = program.lower(config, program.describe(device)[:1])
    compile_without_waiting(lowered, model, device, tmp_path)


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
@pytest.mark.parametrize("form", ["batch gates", "example gates"])
def test_several_devices_exchange_statistics_and_gradients(
    device, mode, form, tmp_path
):
    """Eight GPUs, or four chips of a TPU."""
    devices = program.describe(device)
    assert len(devices) == {"gpu": 8, "tpu": 4}[program.DEVICES[device].backend]
    config = config_of(
        "resnet20",
        stochastic_depth=FORMS[form],
        parallelism=mode,
        batch_norm="global",
    )
    lowered, model = program.lower(config, devices)
    compiled = compile_without_waiting(lowered, model, device, tmp_path)
    text = compiled.as_text()
    assert "all-reduce" in text
    assert "all-gather" in text  # of BatchNorm's statistics


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_several_devices_train_what_the_quickstart_trains(device, dataset):
    devices = program.describe(device)
    notebook = json.loads((ROOT / "notebooks/quickstart.ipynb").read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    found: dict[str, Any] = {}
    for start in ("DATASET = ", "import configs\n"):
        (cell,) = [cell for cell in cells if cell.startswith(start)]
        exec(cell.replace('DATASET = "digits"', f"DATASET = {dataset!r}"), found)
    config = make_config(found["config"])
    assert config.dataset == dataset
    lowered, _ = program.lower(config, devices)
    assert fits(compile_quickly(lowered, device), device)


COMMITTED = json.loads((ROOT / "results/device_programs_h200.json").read_text())


@pytest.mark.parametrize(
    "before",
    COMMITTED["programs"],
    ids=lambda row: "{model}-{dtype}-{last_survival}-{form}".format_map(row),
)
def test_launches_stay_near_the_committed_number(device, before):
    if device != "h200":
        pytest.skip("a TPU launches the whole step at once")
    names = ("batch_size", "dtype", "last_survival", "scan_unroll", "conv_gradient")
    given = {name: before[name] for name in names if name in before}
    row = program.compile_for(device, before["model"], **given)
    for side in ("at_most", "expected"):
        assert 0 < row[side]["launches"] <= 1.05 * before[side]["launches"]
    closed = before.get("launches_of_closed_blocks", row["launches_of_closed_blocks"])
    assert row["launches_of_closed_blocks"] == closed
    assert row["temporary_mib"] <= 1.05 * before["temporary_mib"]
    assert row["cuda_graphs"] == 1 and row["at_most"]["waits"] == 0
