# SPDX-License-Identifier: Apache-2.0
"""The page about runs: its numbers, and its figures as a browser draws them."""

import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from driver import in_process, lines
from plotly import offline
from sklearn.metrics import confusion_matrix
from tiny import TINY

from experiments import report, report_page
from experiments.studies import subject
from experiments.training import trained
from rn_jax.errors import InputError
from rn_jax.models import MODELS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@pytest.fixture(scope="module")
def stopped(run):
    """The same as if it had been killed after its first epoch."""
    path = run.with_name("stopped")
    shutil.copytree(run, path)
    (path / "summary.json").unlink()
    for name in ("metrics", "timing"):
        first = [ln for ln in lines(path, f"{name}.jsonl") if ln["step"] <= 6]
        text = "".join(json.dumps(line) + "\n" for line in first)
        (path / f"{name}.jsonl").write_text(text)
    config = json.loads((path / "config.json").read_text())
    config |= {"seed": 5, "published_error_percent": {"digits": 8.75}}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def page(run, stopped, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "both.html"
    analysis = run / "analysis"
    analysis.mkdir()
    (analysis / "delete_one.png").write_bytes(
        (run / "figures/survival.png").read_bytes()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY)
        argv = [str(run), str(stopped), f"--out={file}"]
        assert in_process(patch, argv, report) == 0
    return file


class Tables(HTMLParser):
    """Rows of all tables as lists of texts, and where everything is loaded from."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.sources, self._in_cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self._in_cell = tag in ("td", "th")

    def handle_endtag(self, tag):
        self._in_cell = False

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def test_numbers_are_those_of_the_runs(page, run, stopped):
    rows = {row[0]: row[1:] for row in Tables(page.read_text()).rows}
    summary = json.loads((run / "summary.json").read_text())
    first = [ln for ln in lines(stopped) if ln["kind"] == "epoch"][-1]
    assert rows["test error"] == [
        f"{summary['test_error_percent']:.2f} %",
        f"{first['test_error_percent']:.2f} %",
    ]
    assert rows["run"] == ["finished", "not finished: at epoch 1"]
    assert rows["published"] == ["-", "8.75 % (He et al. 2015)"]
    assert rows["ours - published"] == [
        "-",
        f"{first['test_error_percent'] - 8.75:+.2f} points",
    ]
    assert rows["seed"] == ["0", "5"]
    assert rows["published_error_percent.digits"] == ["-", "8.75"]
    assert "batch_size" not in rows  # which the runs have in common
    assert rows["jax"] == [jax.__version__, "-"]
    machine = summary["machine"]
    assert rows["CPU"] == [machine["cpu"], "-"]
    assert rows["cores"] == [str(machine["cores"]), "-"]
    assert rows["memory (GiB)"] == [str(machine["memory_gib"]), "-"]
    assert rows["epochs"] == ["2", "1"]


def test_confusions_and_worst_mistakes_are_those_of_the_network(run):
    record = report.read(str(run), "run", worst=5)
    found = subject.from_run(str(run))
    apply = jax.jit(lambda x: found.model.apply(found.variables, x, train=False))
    logits = np.asarray(apply(found.preprocess(found.test.images)), np.float64)
    labels = found.test.labels
    guess = logits.argmax(axis=1)
    np.testing.assert_array_equal(record.confusion, confusion_matrix(labels, guess))
    own = logits[np.arange(len(labels)), labels]
    losses = np.where(guess != labels, np.logaddexp.reduce(logits, axis=1) - own, 0)
    worst = np.argsort(-losses)[:5]
    assert [m.label for m in record.mistakes] == labels[worst].tolist()
    assert [m.predicted for m in record.mistakes] == guess[worst].tolist()
    np.testing.assert_allclose(
        [m.loss for m in record.mistakes], losses[worst], rtol=1e-4
    )
    for mistake, i in zip(record.mistakes, worst, strict=True):
        np.testing.assert_array_equal(mistake.image, found.test.images[i])
    none = report.read(str(run), "run", worst=0)
    assert none.mistakes == []
    told = f"<p>{(guess != labels).sum()} images are misclassified; none is shown.</p>"
    assert told in report_page.page([none], command="")


def test_of_a_run_without_its_network_the_rest_is_told(run, stopped, tmp_path):
    """One that has not ended, and one of which the small files alone were kept."""
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        shutil.copy(run / name, kept / name)
    reasons = {stopped: "has not ended", kept: "was kept without checkpoints"}
    for path, reason in reasons.items():
        record = report.read(str(path), "it", worst=5)
        assert record.survival.tolist() == [0.875, 0.75, 0.625, 0.5]
        assert record.confusion is None and record.opened is None
        text = report_page.page([record], command="")
        assert text.count(f"<p>Not available: it {reason}.</p>") == 3
        assert "2.75 of 4 blocks are expected to be open.</p>" in text
    rows = {row[0]: row[1:] for row in Tables(text).rows}
    summary = json.loads((run / "summary.json").read_text())
    assert rows["test error"] == [f"{summary['test_error_percent']:.2f} %"]

    (kept / "summary.json").unlink()
    facts = summary | {"steps": 7, "reason": "The loss is not finite at step 7."}
    (kept / "diverged.json").write_text(json.dumps(facts))
    text = report_page.page([report.read(str(kept), "it", worst=5)], command="")
    assert "<p>Not available: it diverged at step 7.</p>" in text
    again = {row[0]: row[1:] for row in Tables(text).rows}
    assert again["run"] == ["diverged at step 7"]
    for name in ("parameters", "blocks", "devices", "cores", "jax"):
        assert again[name] == rows[name] != ["-"]
    with pytest.raises(InputError, match=r"kept diverged: The loss .* at step 7\.$"):
        trained.finished(str(kept))


def test_rates_are_drawn_as_steps(page):
    """Of both runs; a line between two rates would tell of rates that never were."""
    ours = page.read_text().replace(offline.get_plotlyjs(), "")
    assert ours.count('"shape":"vh"') == 2
    assert "open blocks, mean so far" in ours


def test_names_of_runs_are_as_long_as_tells_them_apart():
    assert report.labels(["a/x", "b/y/"]) == ["x", "y"]
    assert report.labels(["a/x/0", "b/x/0", "b/x/1"]) == ["a/x/0", "b/x/0", "b/x/1"]
    # Of a sweep, and of one of an earlier version: what differs.
    names = ["s/model=a__last_survival=0.2", "s/model=a__last_survival=0.5"]
    assert report.labels(names) == ["last_survival=0.2", "last_survival=0.5"]
    names = ["s/a.rate=0.2,model=x,b=1", "s/a.rate=0.5,model=y,b=1"]
    assert report.labels(names) == ["rate=0.2, model=x", "rate=0.5, model=y"]
    names = ["s/a.rate=1__b.rate=1/seed0", "s/a.rate=2__b.rate=3/seed0"]
    assert report.labels(names) == ["a.rate=1, b.rate=1", "a.rate=2, b.rate=3"]
    assert report.labels(["s/a.rate=0.2__b=1"]) == ["rate=0.2, b=1"]


def test_a_sweep_stands_for_its_runs_and_has_a_page_of_its_own(
    run, stopped, tmp_path, monkeypatch, capsys
):
    sweep = tmp_path / "sweep"
    for rate in ("0.2", "0.15"):
        shutil.copytree(run, sweep / f"model=tiny__rate={rate}")
    assert in_process(monkeypatch, [str(sweep)], report) == 0
    text = (sweep / "report.html").read_text()
    assert ["", "rate=0.15", "rate=0.2"] in Tables(text).rows
    assert text.count('<div class="table"><table>') == text.count("</table></div>") > 0
    argv = [str(run), str(stopped)]
    assert in_process(monkeypatch, argv, report) == 0
    file = run.parent / "report-of-tiny_sd-stopped.html"
    assert capsys.readouterr().out.endswith(f"Report: {file}\n")
    file.unlink()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "argv, match",
    [
        (["{}/nowhere"], "nowhere is not a run: python -m experiments.run"),
        (["{}/tiny_ds"], r"no folder .*/tiny_ds; similar: .*/tiny_sd\."),
        (["{}", "{}/stopped"], "A run is named twice"),
        (["{}/tiny_sd", "{}/tiny_sd/"], "A run is named twice"),
        (["{}/tiny_sd", "--worst=-1"], "--worst must be at least 0, not -1"),
        (["{}/tiny_sd", "--out={}/tiny_sd"], "cannot be written to"),
        (["{}/tiny_sd", "--out={}/none/x.html"], "There is no folder .*/none: make it"),
        ([], "are required: RUN"),
    ],
)
def test_bad_input_gets_a_sentence(run, stopped, monkeypatch, capsys, argv, match):
    argv = [arg.format(run.parent) for arg in argv]
    assert in_process(monkeypatch, argv, report) == 2
    assert re.search(match, capsys.readouterr().err)
    assert not (run / "report.html").exists()


READ = """<script>
addEventListener("load", () => setTimeout(() => {
  const within = (id, what) => [...document.getElementById(id).querySelectorAll(what)];
  const paths = (id, what) => within(id, what).map((p) => p.getAttribute("d"));
  const axis = (id, name) => {
    const {range, _length} = document.getElementById(id)._fullLayout[name];
    return {range, length: _length};
  };
  const widths = (what) =>
    [...document.querySelectorAll(what)].map((image) => image.naturalWidth);
  const found = {
    plots: document.querySelector(".panels").querySelectorAll(".subplot").length,
    errors: paths("error_percent_curves", ".scatterlayer path.js-line"),
    error_axis: axis("error_percent_curves", "yaxis"),
    published: within("error_percent_curves", ".annotation-text").map(
      (t) => t.textContent),
    survival: paths("gates", ".scatterlayer path.js-line"),
    bars: paths("gates", ".bars .point path"),
    gate_axis: axis("gates", "yaxis"),
    counts: within("confusion_0", ".heatmap-label").map((t) => t.textContent),
    speed: within("images_per_second", ".xy .scatterlayer .point").length,
    mistakes: widths(".mistakes img"),
    studies: widths(".study img"),
    buttons: within("loss_curves", ".modebar-btn").map((b) => b.dataset.title),
  };
  const boxes = (what) => [...document.querySelectorAll(what)].map((element) => {
    const {left, top, right, bottom} = element.getBoundingClientRect();
    return [left, top, right, bottom];
  });
  const parts = [".panels > div", ".main-svg", ".nsewdrag", ".legend", ".xtitle",
                 ".table", "td"];
  found.wide = boxes(parts[0]);
  document.body.style.width = "368px";  // as on a phone of 400 pixels
  document.querySelectorAll(".js-plotly-plot").forEach((p) => Plotly.Plots.resize(p));
  setTimeout(() => {
    found.narrow = parts.map(boxes);
    const place = document.createElement("pre");
    place.id = "found";
    place.textContent = JSON.stringify(found);
    document.body.append(place);
  }, 1000);
}, 500));
</script></body>"""


def heights(path, axis):
    """The y of an SVG path's points, by the axis that it is drawn on."""
    pixels = re.findall(r"[ML][\d.-]+,([\d.-]+)|V([\d.-]+)", path)
    low, high = axis["range"]
    return [
        low + (1 - float(a or b) / axis["length"]) * (high - low) for a, b in pixels
    ]


def check_boxes(wide, narrow):
    """On a phone panels are below each other, and legends below the axes' titles."""
    assert wide[0][1] == wide[1][1] and wide[0][2] <= wide[1][0]
    panels, drawings, areas, legends, titles, tables, cells = narrow
    assert [panel[0] for panel in panels] == [panels[0][0]] * 6
    for one, two in itertools.pairwise(panels):
        assert one[3] <= two[1]
    assert all(right - left <= 368 for left, _, right, _ in drawings)
    assert all(right - left >= 200 for left, _, right, _ in areas)
    assert len(legends) == 7 and len(titles) == 8  # the heat map has none
    for legend in legends:
        above = max((t for t in titles if t[1] < legend[1]), key=lambda t: t[1])
        assert above[3] <= legend[1] + 2 and legend[2] <= panels[0][2]
    # Tables scroll, and no column shrinks to a letter.
    assert tables and all(right - left <= 368 for left, _, right, _ in tables)
    assert all(right - left >= 64 for left, _, right, _ in cells)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_draws_the_figures(page, run, stopped, tmp_path):
    readable = tmp_path / "readable.html"
    readable.write_text(page.read_text().replace("</body>", READ))
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        "--window-size=1280,900",
        *("--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--disable-quic", f"--user-data-dir={tmp_path / 'user'}"),
        *("--virtual-time-budget=20000", "--dump-dom", readable.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    drawn = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert drawn, done.stderr[-2000:]
    found = json.loads(drawn[1].replace("&gt;", ">").replace("&amp;", "&"))
    epochs = [ln for ln in lines(run) if ln["kind"] == "epoch"]
    assert found["plots"] == 4
    for path, part in zip(found["errors"], ("train", "test"), strict=True):
        expected = [line[f"{part}_error_percent"] for line in epochs]
        assert heights(path, found["error_axis"]) == pytest.approx(expected, abs=0.5)
    assert found["published"] == ["He et al. 2015: 8.75 %"]

    record = report.read(str(run), "run", worst=24)
    assert record.survival.tolist() == [0.875, 0.75, 0.625, 0.5]
    ends = heights(found["survival"][0], found["gate_axis"])  # a straight line has two
    assert ends == pytest.approx([0.875, 0.5], abs=0.01)
    # The second run, which has not ended, has a line and no bars.
    assert len(found["survival"]) == 2
    tops = [max(heights(bar, found["gate_axis"])) for bar in found["bars"]]
    assert tops == pytest.approx(record.opened.tolist(), abs=0.01)

    texts = [text for text in found["counts"] if text]
    assert sorted(map(int, texts)) == sorted(record.confusion.ravel().tolist())
    assert found["speed"] == len(lines(run, "timing.jsonl")) + 1
    assert found["mistakes"] == [8] * len(record.mistakes)
    assert found["studies"] == [1360]
    check_boxes(found["wide"], found["narrow"])
    assert "Zoom" in found["buttons"] and "Share chart..." not in found["buttons"]
