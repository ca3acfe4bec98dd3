# SPDX-License-Identifier: Apache-2.0
"""The papers' tables: their rows and numbers, shortening, and what is written."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import fake
import numpy as np
import pytest
from driver import CACHE, in_process
from etils import epath
from test_configs import NAMES, made

from experiments import reproduce
from experiments.papers import results_page
from experiments.papers.entries import entries, shorten
from experiments.papers.tables import TABLES
from experiments.training import loop, setup
from experiments.training.schedule import count_steps, make_schedule
from rn_jax import InputError

ROOT = Path(__file__).parents[2] / "results"

# As the papers print them: row -> error by data set; None: "fail" or no number.
PUBLISHED = {
    "stochastic_depth": {
        "constant": (6.41, 27.22),
        "stochastic": (5.25, 24.98),
        "constant_svhn": (1.80,),
        "stochastic_svhn": (1.75,),
        "constant_1202": (6.67,),
        "stochastic_1202": (4.91,),
        "constant_not_augmented": (13.63, 44.74),
        "stochastic_not_augmented": (11.66, 37.8),
        "constant_imagenet": (21.78,),
        "stochastic_imagenet": (21.98,),
    },
    "resnet_cifar": {
        "resnet20": (8.75,),
        "resnet32": (7.51,),
        "resnet44": (7.17,),
        "resnet56": (6.97,),
        "resnet110": (6.43,),
        "resnet1202": (7.93,),
    },
    "preact_shortcuts": {
        "original": (6.61,),
        "scaling_0_1": (None,),
        "scaling_05_1": (None,),
        "scaling_05_05": (12.35,),
        "exclusive_gating_0": (None,),
        "exclusive_gating_6": (8.70,),
        "exclusive_gating_7": (9.81,),
        "shortcut_gating_0": (12.86,),
        "shortcut_gating_6": (6.91,),
        "conv_shortcut": (12.22,),
        "dropout_shortcut": (None,),
    },
    "preact_activations": {
        "original_110": (6.61,),
        "bn_after_addition_110": (8.17,),
        "relu_before_addition_110": (7.84,),
        "relu_only_110": (6.71,),
        "full_110": (6.37,),
        "original_164": (5.93,),
        "bn_after_addition_164": (6.50,),
        "relu_before_addition_164": (6.14,),
        "relu_only_164": (5.91,),
        "full_164": (5.46,),
    },
    "preact_depth": {
        "original_110": (6.61,),
        "full_110": (6.37,),
        "original_164": (5.93, 25.16),
        "full_164": (5.46, 24.33),
        "original_1001": (7.61, 27.82),
        "full_1001": (4.92, 22.71),
    },
    "densenet": {
        "40_12": (5.24, 24.42, 1.79),
        "100_12": (4.10, 20.20, 1.67),
        "100_24": (3.74, 19.25, 1.59),
        "bc100_12": (4.51, 22.27, 1.76),
        "bc250_24": (3.62, 17.60, 1.74),
        "bc190_40": (3.46, 17.18),
        "40_12_not_augmented": (7.00, 27.55),
        "100_12_not_augmented": (5.77, 23.79),
        "100_24_not_augmented": (5.83, 23.42),
        "bc100_12_not_augmented": (5.92, 24.15),
        "bc250_24_not_augmented": (5.19, 19.64),
    },
    "resnext_cifar": {
        "1x64d": (None, None),
        "8x64d": (3.65, 17.77),
        "16x64d": (3.58, 17.31),
    },
    "highway": {"highway19": (7.54, 32.24)},
    "short_paths": {"whole": (6.10,), "short": (5.96,)},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_errors(name):
    found = {}
    for entry in entries(TABLES[name], None, None, [], 1):
        found[entry.row] = (*found.get(entry.row, ()), entry.published)
    assert found == PUBLISHED[name]


def test_rows_that_fail_in_the_paper():
    found = entries(TABLES["preact_shortcuts"], None, None, [], 1)
    assert {e.row for e in found if e.config.expected_to_fail} == {
        *("scaling_0_1", "scaling_05_1", "exclusive_gating_0", "dropout_shortcut")
    }


def test_every_config_is_a_row_or_no_row_of_a_paper():
    rows = {config for table in TABLES.values() for config in table.rows.values()}
    assert rows <= set(NAMES)
    assert set(NAMES) - rows == {
        *("highway50_mnist", "vgg15", "resnet200"),
        *("densenet_bc40_36", "densenet_bc40_48", "densenet_bc40_60"),
    }
    for table in TABLES.values():
        for pair in table.differences:
            assert set(pair) <= set(table.rows)


@pytest.mark.parametrize("name", TABLES)
def test_rows_can_be_built(name):
    """On their own data sets; on CIFAR-10 where that is ImageNet."""
    dataset = "cifar10" if name == "before_resnets" or "imagenet" in name else None
    for entry in entries(TABLES[name], None, dataset, [], 0.02):
        setup.check(entry.config)
        make_schedule(entry.config, 390, count_steps(entry.config, 390))


def test_protocols_number():
    """At the best validation epoch where a part is held out, else the last."""
    for name, error in [("stochastic_depth", "best_val"), ("densenet", "test_error_p")]:
        entry = entries(TABLES[name], None, "cifar10", [], 1)[0]
        assert error in entry.error


@pytest.mark.parametrize(
    "name",
    ["resnet110_he2015", "resnet152_svhn", "resnet110_sd", "resnet1202_sd", "wrn28_10"],
)
def test_shortened_schedule_is_the_whole_one_run_through_faster(name):
    config = made(name, "cifar10")
    short = shorten(config, 0.1)
    steps_per_epoch = 350
    rates = {}
    for label, each in (("whole", config), ("short", short)):
        total = count_steps(each, steps_per_epoch)
        schedule = make_schedule(each, steps_per_epoch, total)
        places = [(i + 0.5) / 200 for i in range(200)]
        rates[label] = [float(schedule(int(total * place))) for place in places]
        rates[label, "total"] = total
    assert rates["short"] == rates["whole"]
    assert len(set(rates["short"])) > 2
    assert rates["short", "total"] == pytest.approx(rates["whole", "total"] / 10)
    shortened = ("steps", "epochs", "lr_drops", "warmup", "plateau_patience")
    whole = {field: getattr(config, field) for field in shortened}
    assert dataclasses.replace(short, **whole) == config


def test_shortening_by_hand():
    config = made("preact_resnet110_short_paths")
    short = shorten(config, 0.02)
    assert (short.steps, short.lr_drops) == (1280, (640, 960))
    assert short.warmup == 8
    begins = config.stochastic_depth_from_epoch
    assert short.stochastic_depth_from_epoch == round(begins * 0.02)
    least = shorten(made("resnet152_svhn"), 0.001)
    assert least.epochs == 1  # of 50, and the drops with it
    assert least.lr_drops == pytest.approx((0.6, 0.7))
    assert shorten(config, 1) == config
    with pytest.raises(InputError, match="would drop twice in one step"):
        shorten(config, 1e-5)


def arguments(workdir, *options, table="stochastic_depth"):
    return [f"--table={table}", f"--workdir={workdir}", *options]


PAIR = ["--only=constant,stochastic", "--dataset=cifar10"]


def read(workdir):
    found = json.loads((workdir / "table.json").read_text())
    text = (workdir / "table.md").read_text()
    body = [line for line in text.splitlines() if line.startswith("| ")][2:]
    return found, text, [line.strip("| ").split(" | ") for line in body]


def test_table_of_seeds(tmp_path, monkeypatch, capsys):
    """Its numbers by hand: constant 6, 7 and 11 %, stochastic depth half a point less.

    At the best validation epoch the runs here have one point more.
    """
    errors = {0: 6.0, 1: 7.0, 2: 11.0}
    fake.use(
        monkeypatch,
        lambda c: errors[c.seed] - 0.5 * (c.stochastic_depth is not None),
    )
    assert (
        in_process(monkeypatch, arguments(tmp_path, *PAIR, "--seeds=3"), reproduce) == 0
    )
    found, text, body = read(tmp_path)
    size = ["3", "500", "1,234,567", "60", "250"]
    assert body == [
        ["constant", "cifar10", "6.41", "9.00 ± 2.65", *size],
        ["stochastic", "cifar10", "5.25", "8.50 ± 2.65", *size],
    ]
    assert "at the epoch of the best validation error" in text and "\\*" not in text
    row = found["rows"][0]
    assert row["ours_error_percent"] == 9 and row["rehearsal"] is False
    assert row["test_error_at_best_val_percent"]["each"] == [7, 8, 12]
    [difference] = found["differences"]
    assert difference["ours_points"] == -0.5
    assert difference["published_points"] == pytest.approx(5.25 - 6.41)
    says = "stochastic minus constant on cifar10: -0.50 points of test error (better); "
    assert f"{says}-1.16 in the paper." in capsys.readouterr().out


def test_median_where_the_paper_has_it(tmp_path, monkeypatch):
    errors = {0: 6.0, 1: 7.0, 2: 11.0}
    fake.use(monkeypatch, lambda config: errors[config.seed])
    options = ["--only=original,scaling_0_1", "--seeds=3"]
    argv = arguments(tmp_path, *options, table="preact_shortcuts")
    assert in_process(monkeypatch, argv, reproduce) == 0
    found, _, body = read(tmp_path)
    assert [row[:5] for row in body] == [
        ["original", "cifar10", "6.61", "7.00", "8.00 ± 2.65"],
        ["scaling_0_1", "cifar10", "fail (> 20 %)", "7.00", "8.00 ± 2.65"],
    ]
    assert [row["published_fail"] for row in found["rows"]] == [False, True]
    assert found["rows"][0]["ours_error_percent"] == 7


def test_rehearsal_is_marked_and_goes_on(tmp_path, monkeypatch, capsys):
    options = [*PAIR, "--scale=0.004", "--config.model=resnet20"]
    argv = arguments(tmp_path, *options)
    trained = fake.use(monkeypatch, at=2, ends=KeyboardInterrupt())
    assert in_process(monkeypatch, argv, reproduce) == 2
    assert f"--workdir={tmp_path} goes on" in capsys.readouterr().err
    found, text, body = read(tmp_path)
    assert [row[3] for row in body] == ["11.00\\*", "unfinished"]
    assert found["differences"] == []
    assert in_process(monkeypatch, argv, reproduce) == 0
    assert [config.model for config in trained] == ["resnet20"] * 3
    assert [config.epochs for config in trained] == [2] * 3  # of 500
    found, text, body = read(tmp_path)
    assert [row[3] for row in body] == ["11.00\\*", "11.00\\*"]
    assert "shortened to 0.004 of its length" in text
    assert "Otherwise than in the paper: model=resnet20." in text
    assert "(equal); -1.16 in the paper.\\*" in text
    assert all(row["rehearsal"] for row in [*found["rows"], *found["differences"]])
    assert (found["scale"], found["overrides"]) == (0.004, ["model=resnet20"])
    assert "in the paper. A rehearsal." in capsys.readouterr().out


def test_a_row_that_diverges_says_so(tmp_path, monkeypatch):
    fake.use(monkeypatch, at=1, ends=loop.NotFiniteError("Not finite at step 3."))
    assert in_process(monkeypatch, arguments(tmp_path, *PAIR), reproduce) == 0
    _, _, body = read(tmp_path)
    assert [row[3] for row in body] == ["diverged", "11.00"]


BAD_INPUT = {
    "no table": (["--scale=0.1"], r"Unknown table ''; there are: .*stochastic_depth"),
    "table": (["--table=resnet_cifr"], r"'resnet_cifr'; near it: .*resnet_cifar"),
    "row": (
        ["--table=stochastic_depth", "--only=constnt"],
        r"Unknown row 'constnt'; near it: constant",
    ),
    "row twice": (
        ["--table=stochastic_depth", "--only=constant,constant"],
        r"--only has a row twice",
    ),
    "scale": (["--table=densenet", "--scale=2"], r"--scale must be in \(0, 1\], not 2"),
    "scale's type": (["--table=densenet", "--scale=a"], r"invalid float value: 'a'"),
    "data set": (
        ["--table=highway", "--dataset=cifar11"],
        r"Unknown data set 'cifar11'; near it: cifar10",
    ),
    "data set by a field": (
        ["--table=highway", "--config.dataset=digits"],
        r"Name the data set by --dataset, not by --config.dataset",
    ),
    "field": (["--table=highway", "--config.epoch=1"], r"no field 'epoch'"),
    "network": (
        ["--table=densenet", "--dataset=digits", "--config.model=tiny"],
        r"Unknown field of tiny 'dropout'",
    ),
}


@pytest.mark.parametrize("options, sentence", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_sentence_before_anything_is_trained(
    tmp_path, monkeypatch, capsys, options, sentence
):
    trained = fake.use(monkeypatch)
    argv = [f"--workdir={tmp_path / 'bad'}", *options]
    assert in_process(monkeypatch, argv, reproduce) == 2
    err = capsys.readouterr().err
    assert err.startswith("rn_jax: ") and err.count("\n") == 1
    assert re.search(sentence, err), err
    assert not trained and not (tmp_path / "bad").exists()


def page_rows(text):
    """Cells of every row that is not a head, by the section's title."""
    found, title = {}, None
    for line in text.splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif line.startswith("| ") and not line.startswith(("| row |", "| --- |")):
            row = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(title, []).append(row)
    return found


def test_kept_runs_are_on_the_page_of_all_results(tmp_path, monkeypatch, capsys):
    """Errors 6, 7 and 11 % at the last epoch, a point more at the best."""
    errors = {0: 6.0, 1: 7.0, 2: 11.0}
    fake.use(monkeypatch, lambda config: errors[config.seed])
    keep = f"--keep={tmp_path / 'results'}"
    argv = arguments(tmp_path / "run", *PAIR[1:], "--only=constant", "--seeds=3", keep)
    assert in_process(monkeypatch, argv, reproduce) == 0
    row = tmp_path / "results" / "runs" / "stochastic_depth" / "constant-cifar10"
    assert sorted(path.name for path in row.rglob("*") if path.is_file()) == sorted(
        ["config.json", "metrics.jsonl", "summary.json"] * 3
    )
    found = page_rows((tmp_path / "results" / "README.md").read_text())
    assert len(found) == len(TABLES)
    first, *others = found[TABLES["stochastic_depth"].title]
    command = " ".join(["python -m experiments.reproduce", *argv])
    assert first == [
        *("constant", "cifar10", "6.41", "9.00 ± 2.65", "0.250", "3", "500 of 500"),
        *("1 x cpu", "60 s", f"`{command}`", "0123456"),
    ]
    assert all(cells[3:6] == ["", "", "0"] for cells in others)
    assert (row.parent / "curves.png").exists()

    # A seed twice counts once, and a rehearsal does not take the place of whole runs.
    again = arguments(tmp_path / "again", *PAIR[1:], "--only=constant", keep)
    assert in_process(monkeypatch, again, reproduce) == 0
    short = arguments(tmp_path / "short", *PAIR, "--scale=0.01", keep)
    assert in_process(monkeypatch, short, reproduce) == 0
    assert "holds longer runs, which stay" in capsys.readouterr().out
    page = (tmp_path / "results" / "README.md").read_text()
    first, *_ = page_rows(page)[TABLES["stochastic_depth"].title]
    assert first[3:7] == ["9.00 ± 2.65", "0.250", "3", "500 of 500"]

    (tmp_path / "results" / "README.md").unlink()
    assert in_process(monkeypatch, keep.split("="), reproduce) == 0  # from kept files
    assert (tmp_path / "results" / "README.md").read_text() == page


def test_whole_runs_take_the_place_of_a_rehearsal(tmp_path, monkeypatch):
    fake.use(monkeypatch, lambda config: config.epochs / 100)
    keep = f"--keep={tmp_path / 'results'}"
    argv = arguments(tmp_path / "short", *PAIR, "--scale=0.01", keep)
    assert in_process(monkeypatch, argv, reproduce) == 0
    page = (tmp_path / "results" / "README.md").read_text()
    first, *_ = page_rows(page)[TABLES["stochastic_depth"].title]
    assert (first[3], first[6]) == ("1.05\\*", "5 of 500")
    assert "stochastic minus constant on cifar10: +0.00 points" in page
    assert "-1.16 in the paper.\\*" in page and "otherwise " not in page
    argv = arguments(tmp_path / "whole", *PAIR, "--seeds=2", keep)
    assert in_process(monkeypatch, argv, reproduce) == 0
    page = (tmp_path / "results" / "README.md").read_text()
    first, *_ = page_rows(page)[TABLES["stochastic_depth"].title]
    assert (first[3], first[5]) == ("6.00 ± 0.00", "2") and "\\*" not in page


def test_a_run_that_diverged_is_on_the_page(tmp_path, monkeypatch):
    """One of two seeds, then both; when it is tried again with success, no longer."""
    diverged = loop.NotFiniteError("Not finite at step 3.")
    page = tmp_path / "results" / "README.md"
    argv = ["--dataset=cifar10", "--only=constant", f"--keep={page.parent}"]

    def first_row(name, seeds, at=None):
        fake.use(monkeypatch, at=at, ends=diverged)
        told = arguments(tmp_path / name, *argv, f"--seeds={seeds}")
        assert in_process(monkeypatch, told, reproduce) == 0
        return page_rows(page.read_text())[TABLES["stochastic_depth"].title][0]

    row = first_row("a", "0,1", at=1)
    assert (row[3], row[5]) == ("11.00 (diverged)", "1")
    kept = page.parent / "runs" / "stochastic_depth" / "constant-cifar10"
    assert [(kept / f"seed{i}" / "diverged.json").exists() for i in (0, 1)] == [1, 0]
    shutil.rmtree(kept)
    row = first_row("b", "1", at=1)
    assert row[3:7] == ["diverged", "", "0", "500 of 500"] and "--seeds=1" in row[9]
    assert first_row("b", "1")[3:6] == ["11.00", "0.250", "1"]
    assert not list(page.parent.rglob("diverged.json"))
    # What has ended stays, whether the same config or another diverges later.
    for name, more in (("c", []), ("d", ["--config.warmup=7"])):
        argv += more
        assert first_row(name, "1", at=1)[3:6] == ["11.00", "0.250", "1"]
    argv.pop()
    (kept / "seed0" / "summary.json").unlink()  # as if writing had been stopped
    assert first_row("e", "1")[3:6] == ["11.00", "0.250", "1"]


def test_page_says_what_a_row_has_otherwise(tmp_path, monkeypatch):
    fake.use(monkeypatch)
    changed = ["--config.warmup=7", "--config.eval_every_steps=100"]
    options = [*PAIR, *changed, f"--keep={tmp_path / 'results'}"]
    assert in_process(monkeypatch, arguments(tmp_path / "a", *options), reproduce) == 0
    page = (tmp_path / "results" / "README.md").read_text()
    says = "otherwise eval_every_steps=100, warmup=7.0."
    says = f"- constant (cifar10), stochastic (cifar10): {says}"
    assert says in page
    row = page_rows(page)[TABLES["stochastic_depth"].title][0]
    assert row[3] == "11.00\\*"


def test_every_figure_of_the_results_comes_from_a_committed_summary():
    """Read off the page, without what writes it."""
    text = (ROOT / "README.md").read_text()
    found = page_rows(text)
    statistic = {"mean": np.mean, "median": np.median, "best": np.min}
    seen = set()
    for name, table in TABLES.items():
        for row, dataset, _, ours, loss, n, epochs, *rest in found[table.title]:
            place = ROOT / "runs" / name / f"{row}-{dataset}"
            files = sorted(place.rglob("summary.json"))
            assert int(n) == len(files)
            if not files:
                if list(
                    (ROOT / "runs" / name).glob(f"{row}-{dataset}/*/diverged.json")
                ):
                    assert ours == "diverged"
                else:
                    assert (ours, loss, *rest) == ("",) * 6
                    assert epochs.startswith("0 of ")
                continue
            seen |= set(files)
            summaries = [json.loads(file.read_text()) for file in files]
            held_out = summaries[0]["protocol"] == "45k5k"
            at = "_at_best_val" if held_out else ""
            error = [summary[f"test_error{at}_percent"] for summary in summaries]
            ours = ours.removesuffix(" (diverged)").rstrip("\\*")
            number, _, deviation = ours.partition(" ± ")
            assert number == f"{statistic[table.statistic](error):.2f}"
            if deviation:
                assert deviation == f"{np.std(error, ddof=1):.2f}"
            seconds = np.mean([summary["wall_seconds"] for summary in summaries])
            took, unit = rest[1].split()
            assert float(took) == pytest.approx(
                seconds / {"s": 1, "min": 60}[unit], abs=0.5
            )
            assert float(loss) == pytest.approx(
                np.mean([summary["train_loss"] for summary in summaries]), abs=5e-4
            )
            first = summaries[0]
            assert epochs.startswith(f"{first['epochs']:g} of ")
            machine = first.get("machine", {"cpu": first["devices"]})
            hardware = machine.get("accelerator", machine["cpu"])
            assert rest[0].startswith(hardware)
            if "cores" in machine and "accelerator" not in machine:
                assert f", {machine['cores']} cores, " in rest[0]
            assert rest[2] == f"`{first['command']}`"
            assert rest[3] == first["git_revision"][:7]
    assert seen == set((ROOT / "runs").rglob("summary.json"))
    assert results_page.page(epath.Path(ROOT)) == text


@pytest.mark.slow
def test_rehearsal_on_digits(tmp_path, monkeypatch, capsys, quick_compile):
    """Real runs of a network of four blocks: 3 epochs of 30."""
    argv = [
        *("--table=stochastic_depth", "--only=constant,stochastic", "--scale=0.1"),
        *("--dataset=digits", "--config.model=tiny", "--config.batch_size=240"),
        *("--config.num_devices=1", f"--config.compilation_cache={CACHE}"),
        f"--workdir={tmp_path}",
    ]
    assert in_process(monkeypatch, argv, reproduce) == 0
    found, _, body = read(tmp_path)
    for row, line in zip(found["rows"], body, strict=True):
        folder = tmp_path / f"{row['row']}-digits"
        summary = json.loads((folder / "summary.json").read_text())
        assert row["ours_error_percent"] == summary["test_error_percent"]
        assert (summary["epochs"], row["epochs"]) == (3, 3)
        assert line[2:4] == ["-", f"{summary['test_error_percent']:.2f}\\*"]
        assert line[6] == f"{summary['params']:,}"
    [difference] = found["differences"]
    one, two = (row["ours_error_percent"] for row in found["rows"])
    assert difference["ours_points"] == two - one
    assert f"{two - one:+.2f} points" in capsys.readouterr().out
