# SPDX-License-Identifier: Apache-2.0
"""What a GPU launches, read from the text that XLA's runtime writes."""

import itertools
import json

import jax
import pytest

import rn_jax
from benchmarks import device_program, measure
from benchmarks.device_program import Cost, Thunk, cost, read_thunks
from rn_jax import InputError

DTYPES = ("float32", "bfloat16")

# As XLA writes it, with the kinds of lines that programs of this project have.
SEQUENCE = """\
000: kCommandBuffer [source | sink]
    001: kCustomKernel [source       | next=002 (1)] loop_slice_fusion grid: [1, 1, 1]
    002: kConvolution  [prev=001 (1) | next=003 (1)] kConvolution
    003: kWhile        [prev=002 (1) | next=007 (1)]
condition:
        004: kCustomKernel [source | sink] wrapped_compare grid: [1, 1, 1]
      body:
        005: kCustomKernel [source       | next=006 (1)] input_reduce_fusion grid: [2]
        006: kCopy         [prev=005 (1) | sink        ] kCopy
    007: kConditional  [prev=003 (1) | sink        ]
      false_branch:
        008: kCopy [source | sink] kCopy
      true_branch:
        009: kCustomKernel [source       | next=010 (1)] wrapped_convert_3 grid: [2]
        010: kConvolution  [prev=009 (1) | sink        ] kConvolution
011: kConditional   [prev=000 (1) | next=014 (1)]
  false_branch:
    000: kCommandBuffer [source | sink]
        012: kCopy [source | sink] kCopy
  true_branch:
    013: kCustomKernel [source | sink] loop_concatenate_fusion grid: [2, 1, 1]
014: kCustomKernel  [prev=011 (1) | sink        ] loop_add_fusion_1 grid: [2, 1, 1]
"""
INSTRUCTIONS = {2: "cudnn-conv.1", 3: "while.3", 7: "conditional.7", 11: "cond.11"}


@pytest.fixture
def thunks():
    return read_thunks(SEQUENCE, INSTRUCTIONS)


def test_thunks_are_nested_as_they_are_indented(thunks):
    graph, conditional, last = thunks
    assert (graph.kind, conditional.name) == ("CommandBuffer", "cond.11")
    assert last == Thunk("CustomKernel", "loop_add_fusion_1")
    slices, convolution, loop, inside = graph.parts[""]
    assert (slices.name, convolution.name) == ("loop_slice_fusion", "cudnn-conv.1")
    assert [t.name for t in loop.parts["condition"]] == ["wrapped_compare"]
    assert [t.kind for t in loop.parts["body"]] == ["CustomKernel", "Copy"]
    assert [len(part) for part in inside.parts.values()] == [1, 2]
    (copies,) = conditional.parts["false_branch"]
    assert [t.kind for t in copies.parts[""]] == ["Copy"]


def test_a_loop_with_a_known_number_of_turns(thunks):
    """3 turns of 2, no check of the condition; the dearer side of both conditionals."""
    found = cost(thunks, lambda loop: (3, False), None)
    assert found == Cost(
        launches=2 + 3 * 2 + 2 + 1 + 1,
        reductions=3,
        copies=1 + 3 + 1,
        conversions=1,
        outside_graphs=1 + 1,
        waits=1,  # for the conditional outside the graph
    )


def test_a_loop_over_open_blocks_and_expected_sides(thunks):
    """One check more than turns; a quarter of the conditionals are open."""
    found = cost(thunks, lambda loop: (2.5, True), lambda conditional: 0.25)
    checks, sides = 3.5, 0.25 * 2 + 0.75 * 1
    assert found.launches == 2 + 2.5 * 2 + checks + sides + 1 + 1
    assert (found.reductions, found.conversions) == (2.5, 0.25)
    assert found.waits == 1  # the loop waits inside the graph, for nobody


def committed(device):
    file = measure.RESULTS / f"device_programs_{device}.json"
    return json.loads(file.read_bytes())["programs"]


@pytest.mark.parametrize("device", device_program.DEVICES)
def test_committed_programs_are_complete_and_fit_the_device(device):
    rows = committed(device)
    memory = device_program.DEVICES[device].memory
    for row in rows:
        needed = row["argument_mib"] + row["temporary_mib"]
        assert 0 < needed * 2**20 < memory, row
        assert row["command"] and row["machine"] and row["commit"]
    wanted = set(itertools.product(device_program.NETWORKS, DTYPES, (1.0, 0.5)))
    wanted -= {("vgg16", dtype, 0.5) for dtype in DTYPES}  # it has no shortcuts
    assert wanted == {(r["model"], r["dtype"], r["last_survival"]) for r in rows}


def test_rows_of_different_programs_are_kept(monkeypatch, tmp_path):
    """A row replaces that of the same program, and no other one."""
    forms = [(None, "auto"), (None, "xla"), (1, "auto"), (1, "xla"), (9, "auto")]
    made = []

    def compiled(device, model, batch_size, dtype, last_survival, unroll, gradient):
        made.append((batch_size, unroll, gradient))
        form = device_program.form_of(unroll, 9, gradient)
        row = {"model": model, "batch_size": batch_size, "dtype": dtype, "form": form}
        row |= {"last_survival": last_survival, "jax": jax.__version__}
        row |= {"temporary_mib": len(made), "compile_seconds": 1.0}
        return row | dict.fromkeys(["fusions", "whiles", "conditionals"], 0)

    monkeypatch.setattr(device_program, "describe", lambda device: None)
    monkeypatch.setattr(device_program, "compile_for", compiled)
    monkeypatch.setattr(measure, "command", lambda: "a command")
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    for unroll, gradient in [*forms, forms[-1]]:
        for batch_size in (128, 256):
            device_program.device_program(
                device="v5e",
                model=["resnet20"],
                dtype=["float32"],
                last_survival=[1.0],
                batch_size=batch_size,
                scan_unroll=unroll,
                conv_gradient=gradient,
            )
    assert len(set(made)) == 10 and len(made) == 12
    assert sorted(r["temporary_mib"] for r in committed("v5e")) == [
        *range(1, 9),
        11,
        12,
    ]


def test_a_table_has_each_count_in_its_column():
    counts = [101, 102, 103, 104, 105, 106]
    most = dict(zip(Cost._fields, counts, strict=True))
    row = {"model": "resnet20", "batch_size": 128, "dtype": "bfloat16"}
    row |= {"last_survival": 0.5, "form": "line", "cuda_graphs": 107}
    row |= {"at_most": most, "expected": {"launches": 108}}
    row |= {"temporary_mib": 109, "compile_seconds": 110}
    head, _, line = device_program.table([row])
    cells = zip(*([c.strip() for c in t.split("|")] for t in (head, line)), strict=True)
    assert {name: value for name, value in cells if name} == {
        "network": "resnet20",
        "batch": "128",
        "dtype": "bfloat16",
        "p_L": "0.5",
        "form": "line",
        "launches": "101",
        "reductions": "102",
        "copies": "103",
        "conversions": "104",
        "outside": "105",
        "waits": "106",
        "graphs": "107",
        "expected": "108",
        "MiB": "109",
        "CPU s to compile": "110",
    }


def test_the_open_side_is_the_one_that_reduces():
    """Even if the closed side launches more, as in a DenseNet."""
    opened = [Thunk("Convolution", "cudnn-conv"), Thunk("CustomKernel", "reduce")]
    closed = [Thunk("Copy", "copy") for _ in range(5)]
    thunks = [Thunk("Conditional", "cond", {"a": closed, "b": opened})]

    def launches(share_open):
        return cost(thunks, lambda loop: (1, False), share_open).launches

    assert launches(None) == 5
    assert launches(lambda conditional: 1) == 2
    assert launches(lambda conditional: 0.25) == 0.25 * 2 + 0.75 * 5


def test_launches_of_a_closed_block_are_those_of_both_passes(tmp_path):
    """1 forward and 2 backward; then 2 blocks in a line, and 5 in a loop of 5 turns."""
    sequence = """\
000: kConditional [source | sink]
  a:
    010: kCustomKernel [source | sink] reduce grid: [1]
  b:
    011: kCopy [source | sink] kCopy
001: kConditional [source | sink]
  a:
    020: kCustomKernel [source | sink] reduce grid: [1]
  b:
    021: kCopy [source | sink] kCopy
    022: kCopy [source | sink] kCopy
"""
    line = sequence.replace("000", "002").replace("001", "003")
    loop = "004: kWhile [source | sink]\n      body:\n" + "".join(
        f"        {text}\n"
        for text in sequence.replace("000", "005").replace("001", "006").splitlines()
    )
    places = dict.fromkeys(range(2), "stage2/first")
    places |= dict.fromkeys(range(2, 4), "stage2/blocks")
    places |= dict.fromkeys(range(4, 7), "stage3/blocks")
    lines = [
        f'%c.{n} = x, op_name="jit/{place}/cond" known_trip_count":{{"n":"5"'
        for n, place in places.items()
    ]
    facts = [f'profile_annotation: "c.{n}"\n thunk_id: {n}' for n in places]
    for name, text in (
        ("gpu_after_optimizations.txt", "\n".join(lines)),
        ("thunk_metadata.txt", "\n".join(facts)),
        ("thunk_sequence_after_thunk_passes.txt", sequence + line + loop),
    ):
        (tmp_path / f"module.{name}").write_text(text, "utf-8")
    model = rn_jax.create_model("resnet20", num_classes=10, stage_sizes=(1, 3, 6))
    found = device_program.GpuProgram(tmp_path, model).launches_of_closed_blocks()
    assert found == [
        {"launches": 3 / 2, "blocks": 2},  # the conditionals of one of two equal blocks
        {"launches": 3, "blocks": 1 + 5},
    ]


def test_a_loop_outside_graphs_waits_for_every_check():
    text = SEQUENCE.replace("000: kCommandBuffer", "000: kSequential")
    found = cost(
        read_thunks(text, INSTRUCTIONS), lambda loop: (2, True), lambda conditional: 1
    )
    assert found.waits == 3 + 2
    assert found.outside_graphs == found.launches


def test_devices_that_are_unknown_or_without_a_compiler(capsys, monkeypatch):
    assert device_program.main(["--device=h20"]) == 2
    assert "h200" in capsys.readouterr().err
    for name in device_program.DEVICES["h200"].environment:
        monkeypatch.setenv(name, "")  # so that what `describe` sets is undone
    with pytest.raises(InputError, match="make device-programs"):
        device_program.describe("h200")
