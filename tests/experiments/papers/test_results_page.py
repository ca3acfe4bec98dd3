# SPDX-License-Identifier: Apache-2.0
"""The page of all results: the runs that it keeps, and its numbers."""

import json
import re
import shutil

import fake
import numpy as np
import pytest
from driver import ROOT as PROJECT
from driver import in_process
from etils import epath
from test_reproduce import PAIR, arguments

from experiments import reproduce
from experiments.papers import results_page
from experiments.papers.tables import TABLES
from experiments.training import loop

ROOT = PROJECT / "results"


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
        *("a CPU, 2 cores, 4 GiB", "60 s", f"`{command}`", "0123456"),
    ]
    assert all(cells[3:6] == ["", "", "0"] for cells in others)
    assert (row.parent / "curves.png").exists()
    assert "constant-cifar10, seed2" in (row.parent / "curves.txt").read_text()

    # A seed twice counts once, and a rehearsal does not take the place of whole runs.
    again = arguments(tmp_path / "again", *PAIR[1:], "--only=constant", keep)
    assert in_process(monkeypatch, again, reproduce) == 0
    short = arguments(tmp_path / "short", *PAIR, "--scale=0.01", keep)
    assert in_process(monkeypatch, short, reproduce) == 0
    assert "keeps its longer runs" in capsys.readouterr().out
    page = (tmp_path / "results" / "README.md").read_text()
    first, *_ = page_rows(page)[TABLES["stochastic_depth"].title]
    assert first[3:7] == ["9.00 ± 2.65", "0.250", "3", "500 of 500"]

    (tmp_path / "results" / "README.md").unlink()
    assert in_process(monkeypatch, keep.split("="), reproduce) == 0  # from kept files
    assert (tmp_path / "results" / "README.md").read_text() == page


def test_curves_have_a_colour_for_each_row():
    """Two seeds of one row, of which one has a label, and a row of one epoch."""
    epochs = [
        {"epoch": i, "train_loss": 3 - i, "test_error_percent": 30.0 - i}
        for i in (1, 2)
    ]
    curves = {"a, seed0": epochs, "a, seed1": epochs[:1], "b, seed0": epochs}
    results_page.draw({"a, seed0": []})  # stopped before an evaluation
    loss, error = results_page.draw(curves).axes
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "training loss (nats)")
    for axes, values in ((loss, [2, 1]), (error, [29, 28])):
        first, second, other = axes.get_lines()
        assert (list(first.get_xdata()), list(first.get_ydata())) == ([1, 2], values)
        assert list(second.get_ydata()) == values[:1]
        assert first.get_color() == second.get_color() != other.get_color()
        assert axes.get_legend_handles_labels()[1] == ["a", "a", "b"]


def test_whole_runs_take_the_place_of_a_rehearsal(tmp_path, monkeypatch):
    fake.use(monkeypatch, lambda config: config.epochs / 100)
    keep = f"--keep={tmp_path / 'results'}"
    argv = arguments(tmp_path / "short", *PAIR, "--scale=0.01", keep)
    assert in_process(monkeypatch, argv, reproduce) == 0
    page = (tmp_path / "results" / "README.md").read_text()
    first, *_ = page_rows(page)[TABLES["stochastic_depth"].title]
    assert (first[3], first[6]) == ("1.05\\*", "5 of 500")
    assert "stochastic minus constant on cifar10: +0.00 points" in page
    assert "-1.16 in the paper.\\*" in page and "): with " not in page
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


def test_page_says_how_a_row_deviates(tmp_path, monkeypatch):
    fake.use(monkeypatch)
    changed = ["--config.warmup=7", "--config.eval_every_steps=100"]
    options = [*PAIR, *changed, f"--keep={tmp_path / 'results'}"]
    assert in_process(monkeypatch, arguments(tmp_path / "a", *options), reproduce) == 0
    page = (tmp_path / "results" / "README.md").read_text()
    says = "with eval_every_steps=100, warmup=7.0."
    says = f"- constant (cifar10), stochastic (cifar10): {says}"
    assert says in page
    row = page_rows(page)[TABLES["stochastic_depth"].title][0]
    assert row[3] == "11.00\\*"


def test_momentum_of_another_form_gets_a_remark_and_no_star(tmp_path, monkeypatch):
    fake.use(monkeypatch)
    options = [*PAIR, "--config.momentum_form=caffe", f"--keep={tmp_path / 'results'}"]
    assert in_process(monkeypatch, arguments(tmp_path / "a", *options), reproduce) == 0
    page = (tmp_path / "results" / "README.md").read_text()
    assert "stochastic (cifar10): with momentum_form=caffe." in page
    assert page_rows(page)[TABLES["stochastic_depth"].title][0][3] == "11.00"
    assert "in the paper.\\*" not in page


def test_an_unfinished_run_has_its_epochs_on_the_page(tmp_path, monkeypatch):
    """It stays until a run of the row has finished.

    The fake run stops after 100 steps of 128 images, 0.284 epochs of 45,000.
    """
    keep = f"--keep={tmp_path / 'results'}"
    page = tmp_path / "results" / "README.md"
    row = page.parent / "runs" / "stochastic_depth" / "constant-cifar10"
    metrics = row / "seed0" / "metrics.jsonl"

    def cells(name, *options, ends=None):
        fake.use(monkeypatch, at=1 if ends else None, ends=ends)
        only = ["--only=constant", "--dataset=cifar10", keep, *options]
        argv = arguments(tmp_path / name, *only)
        assert in_process(monkeypatch, argv, reproduce) == (75 if ends else 0)
        first, *_ = page_rows(page.read_text())[TABLES["stochastic_depth"].title]
        return first[3:7]

    monkeypatch.setattr(results_page.figures, "save", lambda *_, **__: None)
    stopped = KeyboardInterrupt()
    small = "--config.batch_size=64"
    seen = ["", "", "0", "0.142 of 500, unfinished\\*"]
    assert cells("small", small, ends=stopped) == seen
    assert "- constant (cifar10): with batch_size=64." in page.read_text()
    shutil.rmtree(row)

    assert cells("a", ends=stopped) == ["", "", "0", "0.284 of 500, unfinished"]
    seen = ["", "", "0", "26 of 500, unfinished"]
    metrics.write_text(f'{json.dumps(fake.EPOCH | {"step": 9000})}\n{{"kind": "epo')
    assert cells("b", ends=stopped) == seen
    for options in ([small], ["--config.seed=1", small], ["--scale=0.01"]):
        assert cells("other", *options, ends=stopped) == seen
        shutil.rmtree(tmp_path / "other")
    assert cells("d", "--scale=0.01") == seen  # ends after 50 steps
    step = {"kind": "step", "step": 9000, "epoch": 26}
    metrics.write_text(json.dumps(step) + "\n")  # stopped before an evaluation
    assert cells("b", ends=stopped) == seen
    ended = ["11.00", "0.250", "1", "500 of 500"]
    assert cells("a") == ended
    for name, more in (("e", []), ("f", ["--config.seed=1"])):
        assert cells(name, *more, ends=stopped) == ended
    assert [place.name for place in row.iterdir()] == ["seed0"]


def epochs_of_unfinished(row):
    """The epochs of 50,000 images that each run without an end has seen, as text."""
    ends = {file.parent for file in row.glob("*/summary.json")}
    for file in row.glob("*/metrics.jsonl"):
        if file.parent not in ends:
            step = json.loads(file.read_text().splitlines()[-1])["step"]
            config = json.loads((file.parent / "config.json").read_text())
            assert (config["dataset"], config["protocol"]) == ("cifar10", "full")
            epochs = step * config["batch_size"] / 50_000
            yield f"{epochs:.0f}" if epochs >= 10 else f"{epochs:.3g}"


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
                if list(place.glob("*/diverged.json")):
                    assert ours == "diverged"
                else:
                    assert (ours, loss, *rest) == ("",) * 6
                    here = [*epochs_of_unfinished(place), "0"][0]
                    unfinished = ", unfinished" if here != "0" else ""
                    assert re.fullmatch(rf"{here} of [\d.]+{unfinished}", epochs)
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
                cores = machine["cores"]
                plural = "" if cores == 1 else "s"
                assert f", {cores} core{plural}, " in rest[0]
            commands = {summary["command"] for summary in summaries}
            assert set(re.findall("`([^`]*)`", rest[2])) == commands
            commits = {summary["git_revision"][:7] for summary in summaries}
            assert set(rest[3].split(", ")) == commits
    assert seen == set((ROOT / "runs").rglob("summary.json"))
    short = TABLES["short_cifar"].title
    assert {cells[6] for cells in found[short]} == {"0.64 of 0.64"}
    of_readme = results_page.rows_with_runs(epath.Path(ROOT))
    assert f"| {short.removeprefix('Not from a paper: ')} | plain56 | " in of_readme
    assert results_page.page(epath.Path(ROOT)) == text
